"""The objective of a model whose last level is a consensus of the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import check_weight
from anytimeify.losses.objective import Objective, check_call, named_terms, smooth

__all__ = ["ConsensusLoss"]


class ConsensusLoss(Objective):
    """What the levels learn by `base`, which does not see the consensus, + weight * CE(consensus, target).

    The consensus is the last of `outputs.levels`; with a taxonomy, its finest granularity counts. Where it is learned
    after the levels (`Consensus("learned")`), the second term has a gradient for the parameters of the consensus
    alone, so both may be trained at once. Terms are those of `base` and, unless its weight is 0,
    `"consensus/cross_entropy"`.

    `label_smoothing` is that of the consensus and of `base`; by default, that of `base` for both.

    Raises `ValueError` for outputs without a consensus.
    """

    def __init__(self, base: nn.Module, weight: float = 1.0, *, label_smoothing: float | None = None) -> None:
        super().__init__(smooth(base, label_smoothing))
        self.base = base
        self.weight = check_weight("weight", weight)

    def terms(self, outputs: Outputs, target: Any) -> dict[str, Tensor]:
        check_call(outputs, target)
        if len(outputs.levels) < 3:
            raise ArgumentValueError(
                f"the outputs have {len(outputs.levels)} levels: expected two or more and their consensus, which "
                "transform(..., consensus=...) adds"
            )
        *levels, consensus = outputs.levels
        terms = dict(named_terms(self.base, Outputs(tuple(levels), outputs.members), target))
        return {**terms, **self._own(consensus, target)}

    def level_terms(self, index: int, count: int, prediction: Any, target: Any) -> dict[str, Tensor]:
        """What level `index` of `count` adds to `terms`, of bases that can say so; the last level is the consensus."""
        if index == count - 1:
            return self._own(prediction, target)
        base: Any = self.base
        terms: dict[str, Tensor] = base.level_terms(index, count - 1, prediction, target)
        return terms

    def _own(self, consensus: Any, target: Any) -> dict[str, Tensor]:
        if self.weight == 0:
            return {}
        finest = consensus[0] if isinstance(consensus, tuple | list) else consensus
        labels = target[0] if isinstance(target, tuple | list) else target
        return {"consensus/cross_entropy": self.cross_entropy(finest, labels) * self.weight}

    def resample(self) -> None:
        """Has the base draw anew, where it draws."""
        base: Any = self.base
        if hasattr(base, "resample"):
            base.resample()

    def extra_repr(self) -> str:
        return f"weight={self.weight}{self.smoothing_repr()}"
