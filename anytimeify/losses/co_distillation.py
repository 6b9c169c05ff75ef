"""Co-distillation: labels for every leaf, and the whole ensemble as the teacher of each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import SoftLabels, check_choice, check_weight, independent_terms, leaves, scale
from anytimeify.losses.objective import Objective, check_call

__all__ = ["CoDistillation"]


class CoDistillation(Objective):
    """(1 - alpha) L_I + alpha L_D, with L_D = sum_n CE(F_n, soft(y^E)) and y^E the mean of all leaves.

    The usual distillation between the members of an ensemble, which Ruiz and Verbeek 2020 compare
    theirs with. `alpha=1` is L_D alone. Reads `outputs.members`, each (N, C) or (N, C, H, W); raises `ValueError`
    where there are none.

    Parameters
        alpha: from 0 to 1; the paper takes 0.5 for CIFAR and 0.75 for ImageNet.
        temperature, softened, detach: how the teacher teaches; see `SoftLabels`. By default T = 2 on both sides
            with T^2, from a constant teacher.
        include_self: whether y^E has the leaf itself in it, as in the paper; without, the others teach.
        reduction: `"mean"` divides each of the two sums by the number of leaves, `"sum"` is as printed.
        label_smoothing: of the cross-entropies with the labels; see `Objective`.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 2.0,
        reduction: Literal["mean", "sum"] = "mean",
        *,
        softened: Literal["both", "teacher"] = "both",
        detach: bool = True,
        include_self: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.alpha = check_weight("alpha", alpha, 1.0)
        self.soft = SoftLabels(float(temperature), softened, detach)
        self.include_self = include_self
        self.reduction = reduction

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        members = leaves(outputs)
        share = self.alpha * scale(self.reduction, len(members))
        terms = dict(independent_terms(outputs, target, 1 - self.alpha, self.reduction, self.label_smoothing))
        for index, (member, teacher) in enumerate(zip(members, self._teachers(members), strict=True)):
            terms[f"member{index}/distillation"] = self.soft.cross_entropy(member, teacher) * share
        return terms

    def _teachers(self, members: tuple[Tensor, ...]) -> list[Tensor]:
        stacked = torch.stack(members)
        if self.include_self:
            return [stacked.mean(0)] * len(members)
        if len(members) == 1:
            raise ArgumentValueError(
                "include_self=False leaves the only member without a teacher: there have to be two or more"
            )
        return [(stacked.sum(0) - member) / (len(members) - 1) for member in members]

    def options(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("alpha", "include_self", "reduction", "label_smoothing")}
        return {**own, **asdict(self.soft)}

    def extra_repr(self) -> str:
        text = f"alpha={self.alpha}, {self.soft}, include_self={self.include_self}, reduction={self.reduction!r}"
        return text + self.smoothing_repr()
