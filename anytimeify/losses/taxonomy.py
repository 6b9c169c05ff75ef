"""An objective for labels of several granularities: that of one, for each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.objective import Objective, check_call, named_terms, smooth
from anytimeify.taxonomy import Taxonomy, coarser

__all__ = ["TaxonomyLoss"]


class TaxonomyLoss(Objective):
    """sum_d w_d base(outputs of granularity d, labels of granularity d).

    With `JointLoss`, Eq. 2 of Lee and Shin 2018: the sum of cross-entropies over levels and granularities. Every level
    and member of the outputs is a tuple of predictions, finest labels first. `target` holds labels of the finest
    granularity, (N,) or (N, H, W), or their probabilities, (N, C) or (N, C, H, W), of which a coarser class has the
    sum; or it is a tuple with the labels of every granularity. Terms are named `"<granularity>/<term of base>"`, levels
    by their numbers in the model. A granularity that only some levels have is an objective on these levels.

    Parameters
        base: an objective on `Outputs`; one for all granularities, or a mapping from their names to one each.
        taxonomy: by default that of the model whose loss this becomes (`net.loss = TaxonomyLoss(JointLoss())`).
        weights: one per granularity, finest first; all ones by default, as in the paper.
        label_smoothing: that of every base; by default they keep their own.

    Raises `ValueError` for outputs and targets that do not fit the taxonomy.
    """

    def __init__(
        self,
        base: nn.Module | Mapping[str, nn.Module],
        taxonomy: Taxonomy | None = None,
        weights: Sequence[float] | None = None,
        *,
        label_smoothing: float | None = None,
    ) -> None:
        whole = base if isinstance(base, nn.Module) else nn.ModuleDict(base)
        super().__init__(smooth(whole, label_smoothing))
        self.base = whole
        if weights is not None and not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ArgumentValueError(f"weights are {tuple(weights)}: expected finite numbers, none negative")
        self.weights = None if weights is None else tuple(map(float, weights))
        self.taxonomy: Taxonomy | None = None
        self.levels: tuple[tuple[int, ...], ...] | None = None  # the granularities of every level
        self.members: tuple[tuple[int, ...], ...] | None = None
        if taxonomy is not None:
            self.bind(taxonomy)

    def bind(
        self,
        taxonomy: Taxonomy,
        levels: Sequence[Sequence[int]] | None = None,
        members: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Says which classes there are, and which granularities the levels and members have, all by default. A model
        does so with its loss; a taxonomy that was given stays."""
        if self.taxonomy is None:
            self._check(taxonomy)
            self.taxonomy = taxonomy
            for name, table in zip(taxonomy.granularities, taxonomy.ancestors, strict=True):
                self.register_buffer(f"above_{name}", torch.tensor(table), persistent=False)
        if self.taxonomy.parents == taxonomy.parents and levels is not None:
            self.levels = tuple(map(tuple, levels))
            self.members = tuple(map(tuple, members or ()))

    def _check(self, taxonomy: Taxonomy) -> None:
        names = taxonomy.granularities
        if self.weights is not None and len(self.weights) != len(names):
            raise ArgumentValueError(
                f"weights has {len(self.weights)} entries, but there are {len(names)} granularities"
            )
        if isinstance(self.base, nn.ModuleDict):
            missing = [name for name in names if name not in self.base]
            if missing:
                raise ArgumentValueError(f"base has no objective for {missing[0]!r}; it has {', '.join(self.base)}")

    def targets(self, target: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The labels of every granularity."""
        taxonomy = self._known()
        if isinstance(target, tuple | list):
            if len(target) != len(taxonomy.sizes):
                raise ArgumentValueError(
                    f"the target has labels of {len(target)} granularities, and there are {len(taxonomy.sizes)}: "
                    f"{', '.join(taxonomy.granularities)}"
                )
            return tuple(target)
        if not isinstance(target, Tensor):
            raise ArgumentError(f"the target is {type(target)}: expected labels of the finest classes, or a tuple")
        tables = [getattr(self, f"above_{name}").to(target.device) for name in taxonomy.granularities[1:]]
        return (target, *(coarser(target, *one) for one in zip(tables, taxonomy.sizes[1:], strict=True)))

    def terms(self, outputs: Outputs, target: Any) -> dict[str, Tensor]:
        check_call(outputs, target)
        taxonomy = self._known()
        labels = self.targets(target)
        levels = _by_granularity("level", outputs.levels, self.levels, taxonomy)
        members = _by_granularity("member", outputs.members, self.members, taxonomy)
        terms: dict[str, Tensor] = {}
        for place, name in enumerate(taxonomy.granularities):
            own = {index: one[place] for index, one in enumerate(levels) if place in one}
            parts = {index: one[place] for index, one in enumerate(members) if place in one}
            if not own:
                continue
            base = self.base[name] if isinstance(self.base, nn.ModuleDict) else self.base
            found = named_terms(base, Outputs(tuple(own.values()), tuple(parts.values())), labels[place])
            weight = 1.0 if self.weights is None else self.weights[place]
            for term, value in found.items():
                term = _renumbered("level", list(own), _renumbered("member", list(parts), term))
                terms[f"{name}/{term}"] = value if weight == 1 else value * weight
        return terms

    def level_terms(self, index: int, count: int, prediction: Sequence[Tensor], target: Any) -> dict[str, Tensor]:
        """What level `index` of `count` adds to `terms`, of bases that can say so: the predictions of one level."""
        taxonomy = self._known()
        labels = self.targets(target)
        levels = self.levels or (tuple(range(len(taxonomy.sizes))),) * count
        (own,) = _by_granularity("level", [prediction], [levels[index]], taxonomy)
        terms: dict[str, Tensor] = {}
        for place, one in own.items():
            name = taxonomy.granularities[place]
            base: Any = self.base[name] if isinstance(self.base, nn.ModuleDict) else self.base
            having = [level for level in range(count) if place in levels[level]]
            found = base.level_terms(having.index(index), len(having), one, labels[place])
            weight = 1.0 if self.weights is None else self.weights[place]
            terms |= {f"{name}/{_renumbered('level', having, term)}": value * weight for term, value in found.items()}
        return terms

    def resample(self) -> None:
        """Has the base draw anew, where it draws: once, for all granularities."""
        bases: list[Any] = list(self.base.values()) if isinstance(self.base, nn.ModuleDict) else [self.base]
        for base in bases:
            if hasattr(base, "resample"):
                base.resample()

    def _known(self) -> Taxonomy:
        if self.taxonomy is None:
            raise ArgumentValueError(
                "TaxonomyLoss knows no taxonomy: give it one, or make it the loss of a model that has one"
            )
        return self.taxonomy

    def extra_repr(self) -> str:
        known = "none" if self.taxonomy is None else ", ".join(self.taxonomy.granularities)
        return f"granularities={known}" + (f", weights={self.weights}" if self.weights is not None else "")


def _by_granularity(
    kind: str, predictions: Sequence[Any], chosen: Sequence[Sequence[int]] | None, taxonomy: Taxonomy
) -> list[dict[int, Tensor]]:
    """Every level's predictions by the place of their granularity."""
    everything = range(len(taxonomy.sizes))
    if chosen is not None and len(chosen) < len(predictions):
        raise ArgumentValueError(
            f"the outputs have {len(predictions)} {kind}s, and the model of this loss has {len(chosen)}"
        )
    result = []
    for index, one in enumerate(predictions):
        own = everything if chosen is None else chosen[index]
        if not isinstance(one, tuple | list) or len(one) != len(own):
            found = f"{len(one)} predictions" if isinstance(one, tuple | list) else "a single prediction"
            names = ", ".join(taxonomy.granularities[place] for place in own)
            raise ArgumentValueError(
                f"{kind} {index} of the outputs is {found}: expected one for each of {names}, as "
                "transform(..., taxonomy=...) gives them"
            )
        result.append(dict(zip(own, one, strict=True)))
    return result


def _renumbered(kind: str, numbers: Sequence[int], term: str) -> str:
    """A term's name with the numbers that levels or members have in the model."""
    if list(numbers) == list(range(len(numbers))):
        return term
    return re.sub(rf"\b{kind}(\d+)\b", lambda found: f"{kind}{numbers[int(found[1])]}", term)
