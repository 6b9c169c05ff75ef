"""What all objectives have in common: named terms, and the two measures that they are made of.

Every measure is a batch mean; for dense prediction, a mean over batch and positions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.ir import AllOutputs, Outputs

__all__ = [
    "Objective",
    "check_call",
    "check_smoothing",
    "check_weights",
    "cross_entropy",
    "divergence",
    "named_terms",
    "smooth",
]


class Objective(nn.Module, ABC):
    """A loss on `Outputs` that can name its summands: `forward` is the plain sum of `terms`.

    `target` is what `cross_entropy` takes: class indices of shape (N,), or class probabilities of shape (N, C); for
    dense prediction, where predictions are (N, C, H, W), indices (N, H, W) or probabilities (N, C, H, W).

    Parameters
        label_smoothing: from 0 to 1: the share of the uniform distribution in what cross-entropies with the labels
            learn, as in `torch.nn.CrossEntropyLoss`. What levels or members learn from each other is not smoothed.

    Raises `ArgumentError`, a `TypeError`, where it is called with anything but `Outputs` and a target.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_smoothing(label_smoothing)

    @abstractmethod
    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        """Every summand of the loss by name, weights and averaging included."""

    def options(self) -> dict[str, Any]:
        """The arguments that make this objective again, by name: saved models keep them. Here, the attributes that are
        called like the arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def summed(self) -> Objective:
        """The same with the plain sum over levels or members, where it is divided by their number: then the gradients
        of what only one of them has do not become smaller the more there are."""
        options = self.options()
        return type(self)(**{**options, "reduction": "sum"}) if options.get("reduction") == "mean" else self

    def forward(self, outputs: Outputs, target: Any = None) -> Tensor:
        check_call(outputs, target)
        first, *rest = self.terms(outputs, target).values()
        for term in rest:
            first = first + term
        return first

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of one prediction with the labels, smoothed."""
        return cross_entropy(logits, target, self.label_smoothing)

    def smoothing_repr(self) -> str:
        """What `extra_repr` ends with."""
        return f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""


def check_call(outputs: Any, target: Any) -> None:
    """Raises `ArgumentError` unless an objective is called as it should be."""
    if not isinstance(outputs, Outputs | AllOutputs):
        given = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"{type(outputs)}"
        raise ArgumentError(
            f"the loss was called with {given}: it compares all levels with the target, so give it what the model "
            "returns, net.loss(net(x), target); for one prediction take torch.nn.functional.cross_entropy"
        )
    if target is None:
        raise ArgumentError("the loss was called without a target: net.loss(net(x), target)")


def named_terms(base: nn.Module, outputs: Outputs, target: Tensor) -> Mapping[str, Tensor]:
    """The summands of any objective; one that does not name them is one summand, `"loss"`."""
    terms = getattr(base, "terms", None)
    return terms(outputs, target) if callable(terms) else {"loss": base(outputs, target)}


def cross_entropy(logits: Any, target: Any, label_smoothing: float = 0.0) -> Tensor:
    """Batch mean of the cross-entropy of one prediction, as `torch.nn.functional.cross_entropy` has it.

    `logits`: (N, C) or (N, C, H, W). `target`: class indices, (N,) or (N, H, W), of type int64, of which -100 is left
    out of the mean; or class probabilities as mixup and cutmix make them, of the shape of the logits, floating.
    """
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise ArgumentError(
            f"predictions are {type(logits).__name__} and the target is {type(target).__name__}: expected tensors; "
            "predictions and labels of several granularities are for TaxonomyLoss(...)"
        )
    probabilities = target.is_floating_point()
    expected = logits.shape if probabilities else logits.shape[:1] + logits.shape[2:]
    indices = target.dtype in (torch.int64, torch.uint8)  # as torch has it
    if logits.ndim < 2 or target.shape != expected or not (probabilities or indices):
        raise ArgumentValueError(
            f"predictions of shape {tuple(logits.shape)} do not go with a target of shape {tuple(target.shape)} and "
            f"type {target.dtype}: expected class indices of type torch.int64, (N,) for predictions (N, C) or "
            "(N, H, W) for (N, C, H, W); or class probabilities, floating, of the shape of the predictions"
        )
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)): a batch mean of the sum over classes.

    The gradient of softened logits shrinks with 1/T^2; the factor T^2 makes up for it (Hinton et al. 2015). The
    teacher is not detached here.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    pointwise = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return pointwise.sum(dim=1).mean() * temperature**2


def check_smoothing(value: Any) -> float:
    """The label smoothing; raises `ArgumentValueError` unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ArgumentValueError(f"label_smoothing is {value!r}: expected a number from 0 to 1")
    return float(value)


def smooth(base: nn.Module, label_smoothing: float | None) -> float:
    """The label smoothing of an objective, which is given to it and to all inside it unless it is None.

    Raises `ArgumentValueError` where there is nothing to give it to."""
    objectives = [module for module in base.modules() if isinstance(module, Objective)]
    if label_smoothing is None:
        return objectives[0].label_smoothing if objectives else 0.0
    if not objectives:
        raise ArgumentValueError(f"label_smoothing is given for {type(base).__name__}: give it to that one itself")
    value = check_smoothing(label_smoothing)
    for objective in objectives:
        objective.label_smoothing = value
    return value


def check_weights(weights: Sequence[float] | None, levels: int) -> tuple[float, ...]:
    """One weight per level; all ones if none were given."""
    if weights is None:
        return (1.0,) * levels
    if len(weights) != levels:
        raise ArgumentValueError(
            f"weights has {len(weights)} entries, but the outputs have {levels} levels: give one per level"
        )
    return tuple(weights)
