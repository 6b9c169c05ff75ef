"""Hierarchical co-distillation: labels for every leaf, and the whole ensemble as the teacher of its sub-trees."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import (
    SoftLabels,
    check_choice,
    check_weight,
    independent_terms,
    nested_ensembles,
    scale,
)
from anytimeify.losses.objective import Objective, check_call

__all__ = ["HierarchicalCoDistillation"]


class HierarchicalCoDistillation(Objective):
    """(1 - alpha) L_I + alpha L_HD, with L_HD = sum_{b=0..B-1} CE(y^b, soft(y^B)).

    y^b is the ensemble of the first 2^b of N = 2^B leaves, L_I the cross-entropies of the leaves (Ruiz and Verbeek
    2020, Eq. 9 and 12). Distilling nested ensembles instead of leaves makes small ensembles better and leaves the
    leaves different from each other. Reads `outputs.members`, each (N, C) or (N, C, H, W), and with
    `ensembles="levels"` also `outputs.levels`; raises `ValueError` for outputs without them. One leaf alone has
    nobody to distil.

    Parameters
        alpha: from 0 to 1; the paper takes 0.5 for CIFAR and 0.75 for ImageNet.
        temperature, softened, detach: how the full ensemble teaches; see `SoftLabels`. By default T = 2 on both
            sides with T^2, from a constant teacher. The paper's text leaves all three open.
        reduction: `"mean"` divides each of the two sums by its number of terms: L_I by N, L_HD by B. `"sum"` is as
            printed, N terms against B, with gradients N times as large in what all leaves share.
        full_ensemble: whether L_HD has the term b = B too, the full ensemble against itself. It has no gradient
            with the default options, but sharpens or softens the predictions with others.
        ensembles: `"powers"`: those of 1, 2, 4, ... and of all leaves; `"levels"`: the levels that the model has.
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
        full_ensemble: bool = False,
        ensembles: Literal["powers", "levels"] = "powers",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("ensembles", ensembles, ("powers", "levels"))
        self.alpha = check_weight("alpha", alpha, 1.0)
        self.soft = SoftLabels(float(temperature), softened, detach)
        self.full_ensemble = full_ensemble
        self.ensembles = ensembles
        self.reduction = reduction

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        nested = nested_ensembles(outputs, self.ensembles)
        _, teacher = nested[-1]
        students = nested if self.full_ensemble else nested[:-1]
        share = self.alpha * scale(self.reduction, len(students))
        terms = dict(independent_terms(outputs, target, 1 - self.alpha, self.reduction, self.label_smoothing))
        for name, student in students:
            terms[f"{name}/distillation"] = self.soft.cross_entropy(student, teacher) * share
        return terms

    def options(self) -> dict[str, Any]:
        own = {
            name: getattr(self, name)
            for name in ("alpha", "reduction", "full_ensemble", "ensembles", "label_smoothing")
        }
        return {**own, **asdict(self.soft)}

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, {self.soft}, full_ensemble={self.full_ensemble}, ensembles={self.ensembles!r}, "
            f"reduction={self.reduction!r}{self.smoothing_repr()}"
        )
