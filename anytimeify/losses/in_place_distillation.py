"""In-place distillation: the full level learns from the labels, the others from the full level."""

from __future__ import annotations

import math

from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses.objective import Objective, cross_entropy, divergence

__all__ = ["InPlaceDistillation"]


class InPlaceDistillation(Objective):
    """CE(full, target) + sum over the other levels of T^2 KL(softmax(full / T) || softmax(level / T)).

    The full level is `outputs.levels[-1]`; its soft predictions are detached, so that the others never teach it.
    The objective of universally slimmable networks (Yu and Huang 2019, section 3.3).
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature}: expected a positive number")
        self.temperature = float(temperature)

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        *students, full = outputs.levels
        teacher = full.detach()
        terms = {
            f"level{index}/distillation": divergence(student, teacher, self.temperature)
            for index, student in enumerate(students)
        }
        return {**terms, f"level{len(students)}/cross_entropy": cross_entropy(full, target)}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
