"""What all objectives have in common: named terms, and the two measures that they are made of.

Every measure is a batch mean; for dense prediction, a mean over batch and positions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify.ir import Outputs

__all__ = ["Objective", "check_weights", "cross_entropy", "divergence", "named_terms"]


class Objective(nn.Module, ABC):
    """A loss on `Outputs` that can name its summands: `forward` is the plain sum of `terms`.

    `target` holds class indices of shape (N,), or (N, H, W) for dense prediction, where predictions are (N, C, H, W).
    """

    @abstractmethod
    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        """Every summand of the loss by name, weights and averaging included."""

    def options(self) -> dict[str, Any]:
        """The arguments that make this objective again, by name: saved models keep them. Here, the attributes that are
        called like the arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def forward(self, outputs: Outputs, target: Tensor) -> Tensor:
        first, *rest = self.terms(outputs, target).values()
        for term in rest:
            first = first + term
        return first


def named_terms(base: nn.Module, outputs: Outputs, target: Tensor) -> Mapping[str, Tensor]:
    """The summands of any objective; one that does not name them is one summand, `"loss"`."""
    terms = getattr(base, "terms", None)
    return terms(outputs, target) if callable(terms) else {"loss": base(outputs, target)}


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Batch mean of the cross-entropy; logits (N, C) or (N, C, H, W), target (N,) or (N, H, W)."""
    if logits.ndim != target.ndim + 1 or logits.shape[0] != target.shape[0] or logits.shape[2:] != target.shape[1:]:
        raise ValueError(
            f"predictions of shape {tuple(logits.shape)} do not go with a target of shape {tuple(target.shape)}: "
            "expected class indices (N,) for predictions (N, C), or (N, H, W) for (N, C, H, W)"
        )
    return F.cross_entropy(logits, target)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)): a batch mean of the sum over classes.

    The gradient of softened logits shrinks with 1/T^2; the factor T^2 makes up for it (Hinton et al. 2015). The
    teacher is not detached here.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    pointwise = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return pointwise.sum(dim=1).mean() * temperature**2


def check_weights(weights: Sequence[float] | None, levels: int) -> tuple[float, ...]:
    """One weight per level; all ones if none were given."""
    if weights is None:
        return (1.0,) * levels
    if len(weights) != levels:
        raise ValueError(
            f"weights has {len(weights)} entries, but the outputs have {levels} levels: give one per level"
        )
    return tuple(weights)
