"""The independent objective of ensembles: labels for every leaf."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import check_choice, independent_terms
from anytimeify.losses.objective import Objective, check_call

__all__ = ["IndependentLoss"]


class IndependentLoss(Objective):
    """L_I = sum_n CE(F_n, target), over the leaves F_n (Ruiz and Verbeek 2020).

    `reduction="mean"` divides by the number of leaves, so that what all leaves share gets gradients of the size that
    it gets in the backbone; `"sum"` is the sum as printed, with which networks that share nothing train as they
    would alone. Reads `outputs.members`, each (N, C) or (N, C, H, W); raises `ValueError` where there are none.
    """

    def __init__(self, reduction: Literal["mean", "sum"] = "mean", *, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        return dict(independent_terms(outputs, target, 1.0, self.reduction, self.label_smoothing))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}{self.smoothing_repr()}"
