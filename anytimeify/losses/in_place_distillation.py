"""In-place distillation: the full level learns from the labels, the others from the full level."""

from __future__ import annotations

import math

from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.objective import Objective, check_call, divergence

__all__ = ["InPlaceDistillation"]


class InPlaceDistillation(Objective):
    """CE(full, target) + sum over the other levels of T^2 KL(softmax(full / T) || softmax(level / T)).

    The full level is `outputs.levels[-1]`; its soft predictions are detached, so that the others never teach it.
    The objective of universally slimmable networks (Yu and Huang 2019, section 3.3). `label_smoothing` is of the
    cross-entropy of the full level.
    """

    def __init__(self, temperature: float = 1.0, *, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ArgumentValueError(f"temperature is {temperature}: expected a positive number")
        self.temperature = float(temperature)

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        *students, full = outputs.levels
        teacher = full.detach()
        terms = {
            f"level{index}/distillation": divergence(student, teacher, self.temperature)
            for index, student in enumerate(students)
        }
        return {**terms, f"level{len(students)}/cross_entropy": self.cross_entropy(full, target)}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}{self.smoothing_repr()}"
