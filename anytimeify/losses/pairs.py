"""What objectives have in common in which predictions teach each other: heads, softened once, and ordered pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from anytimeify.errors import ArgumentValueError

__all__ = ["Heads", "check_heads", "check_temperature"]


@dataclass(frozen=True)
class Heads:
    """The log-probabilities of several heads at one temperature, each (N, C) or (N, C, H, W).

    Every head takes part in many pairs. Softening it once keeps one tensor per head for the backward pass in place of
    two per pair, which is what counts for dense prediction.
    """

    softened: tuple[Tensor, ...]
    temperature: float

    @classmethod
    def of(cls, logits: Sequence[Tensor], temperature: float) -> Heads:
        return cls(tuple(F.log_softmax(one / temperature, dim=1) for one in logits), temperature)

    def divergence(self, student: int, teacher: int) -> Tensor:
        """T^2 KL(softmax(teacher / T) || softmax(student / T)) of a constant teacher, a batch mean.

        Exactly zero where both say the same. The papers' code adds 1e-8 to probabilities to keep their logarithms
        finite; those of a log-softmax are.
        """
        constant = self.softened[teacher].detach()
        pointwise = F.kl_div(self.softened[student], constant, reduction="none", log_target=True)
        return pointwise.sum(dim=1).mean() * self.temperature**2


def check_heads(kind: str, logits: Sequence[Tensor]) -> None:
    """Raises `ValueError` for predictions that cannot be compared with each other; `kind` is what one is called."""
    first = logits[0]
    if first.ndim < 2:
        raise ArgumentValueError(
            f"{kind} 0 has shape {tuple(first.shape)}: expected logits of shape (N, C), or (N, C, H, W) for dense "
            "prediction"
        )
    for index, one in enumerate(logits):
        if one.shape != first.shape:
            raise ArgumentValueError(
                f"{kind} {index} has shape {tuple(one.shape)}, but {kind} 0 has {tuple(first.shape)}: what teaches "
                "each other predicts the same classes, at the same positions"
            )


def check_temperature(temperature: float) -> float:
    """The temperature; raises `ValueError` unless it is a positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ArgumentValueError(f"temperature is {temperature}: expected a positive number")
    return float(temperature)
