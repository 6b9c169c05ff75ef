"""The hierarchical objective of ensembles: labels for the ensemble of every sub-tree."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import check_choice, check_weight, independent_terms, nested_ensembles, scale
from anytimeify.losses.objective import Objective, check_call

__all__ = ["HierarchicalLoss"]


class HierarchicalLoss(Objective):
    """L_H = sum_{b=0..B} CE(y^b, target), over the ensembles y^b of the first 2^b of 2^B leaves; + w L_I.

    An ablation of Ruiz and Verbeek 2020 (Table 1). Reads `outputs.members`, each (N, C) or (N, C, H, W), and with
    `ensembles="levels"` also `outputs.levels`; raises `ValueError` for outputs without them.

    Parameters
        independent: w. 0 is L_H alone; 1 is "L_I + L_H", whose mixing the paper does not print: the plain sum.
        ensembles: `"powers"`: those of 1, 2, 4, ... and of all leaves; `"levels"`: the levels that the model has.
        reduction: `"mean"` divides each of the two sums by its number of terms, `"sum"` is as printed.
        label_smoothing: of the cross-entropies with the labels; see `Objective`.
    """

    def __init__(
        self,
        independent: float = 0.0,
        *,
        ensembles: Literal["powers", "levels"] = "powers",
        reduction: Literal["mean", "sum"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_choice("ensembles", ensembles, ("powers", "levels"))
        check_choice("reduction", reduction, ("mean", "sum"))
        self.independent = check_weight("independent", independent)
        self.ensembles = ensembles
        self.reduction = reduction

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        nested = nested_ensembles(outputs, self.ensembles)
        share = scale(self.reduction, len(nested))
        terms = {f"{name}/cross_entropy": self.cross_entropy(logits, target) * share for name, logits in nested}
        if self.independent == 0:
            return terms
        return {
            **dict(independent_terms(outputs, target, self.independent, self.reduction, self.label_smoothing)),
            **terms,
        }

    def extra_repr(self) -> str:
        text = f"independent={self.independent}, ensembles={self.ensembles!r}, reduction={self.reduction!r}"
        return text + self.smoothing_repr()
