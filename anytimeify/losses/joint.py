"""The joint objective of nested networks: labels for every level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.objective import Objective, check_call, check_weights

__all__ = ["JointLoss"]


class JointLoss(Objective):
    """sum_k w_k CE(level_k, target); `reduction="mean"` divides by the number of levels.

    `weights`: one per level, cheapest first; all ones by default. The objective of nested networks (the sum over
    internal networks in NestedNet, Kim et al. 2018) and of slimmable networks (Yu et al. 2019).
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        if reduction not in ("sum", "mean"):
            raise ArgumentValueError(f"reduction is {reduction!r}: expected 'sum' or 'mean'")
        if weights is not None and not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ArgumentValueError(f"weights are {tuple(weights)}: expected finite numbers, none negative")
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        self.reduction = reduction

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        count = len(outputs.levels)
        check_weights(self.weights, count)
        levels = [self.level_terms(index, count, level, target) for index, level in enumerate(outputs.levels)]
        return {name: term for terms in levels for name, term in terms.items()}

    def level_terms(self, index: int, count: int, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What level `index` of `count` adds to `terms`, for training orders that run levels one at a time."""
        weight = check_weights(self.weights, count)[index]
        share = count if self.reduction == "mean" else 1
        return {f"level{index}/cross_entropy": self.cross_entropy(prediction, target) * (weight / share)}

    def extra_repr(self) -> str:
        return f"weights={self.weights}, reduction={self.reduction!r}{self.smoothing_repr()}"
