"""What the objectives of hierarchical ensembles have in common: leaves, the ensembles of their prefixes, soft labels.

The leaves of an ensemble are `Outputs.members`, their own logits in leaf order. An ensemble averages **logits**
(Ruiz and Verbeek 2020, Eq. 1), and the cheapest ensemble of n leaves is that of the first n (Eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.objective import cross_entropy

__all__ = ["SoftLabels", "check_choice", "check_weight", "independent_terms", "leaves", "nested_ensembles", "scale"]


@dataclass(frozen=True)
class SoftLabels:
    """How a teacher's logits become labels, and how a student is measured against them.

    Fields
        temperature: T, which softens what the teacher says.
        softened: `"both"`: teacher and student are softened, and the term carries T^2 (Hinton et al. 2015);
            `"teacher"`: the teacher alone, which is what the paper's text says to the letter. Only with `"both"` do
            equal logits mean no gradient.
        detach: whether the teacher is a constant.

    Raises `ValueError` for a temperature that is not positive and for a `softened` that is neither.
    """

    temperature: float = 2.0
    softened: Literal["both", "teacher"] = "both"
    detach: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ArgumentValueError(f"temperature is {self.temperature}: expected a positive number")
        check_choice("softened", self.softened, ("both", "teacher"))

    def cross_entropy(self, student: Tensor, teacher: Tensor) -> Tensor:
        """-sum_c p_c log q_c, a batch mean; p the softened teacher, q the student; logits (N, C) or (N, C, H, W).

        A cross-entropy, as the paper prints it: with a detached teacher it is the KL divergence and a constant, the
        entropy of the teacher. With a teacher that is not detached the two have different gradients.
        """
        teacher = teacher.detach() if self.detach else teacher
        both = self.softened == "both"
        labels = F.softmax(teacher / self.temperature, dim=1)
        log_student = F.log_softmax(student / self.temperature if both else student, dim=1)
        pointwise = -(labels * log_student).sum(dim=1).mean()
        return pointwise * self.temperature**2 if both else pointwise

    def __str__(self) -> str:
        return f"temperature={self.temperature}, softened={self.softened!r}, detach={self.detach}"


def leaves(outputs: Outputs) -> tuple[Tensor, ...]:
    """The leaves' logits. Raises `ValueError` where there are none, or where they do not fit together."""
    members = outputs.members
    if not members:
        raise ArgumentValueError(
            "the outputs have no members: this objective reads the leaves of an ensemble, which the scheme "
            "hierarchical-ensemble gives; for the levels of any model take JointLoss"
        )
    first = members[0]
    if first.ndim < 2:
        raise ArgumentValueError(
            f"member 0 has shape {tuple(first.shape)}: expected logits of shape (N, C), or (N, C, H, W) for dense "
            "prediction"
        )
    for index, member in enumerate(members):
        if member.shape != first.shape:
            raise ArgumentValueError(
                f"member {index} has shape {tuple(member.shape)}, but member 0 has {tuple(first.shape)}: all leaves "
                "of an ensemble predict the same"
            )
    return tuple(members)


def nested_ensembles(outputs: Outputs, which: Literal["powers", "levels"]) -> tuple[tuple[str, Tensor], ...]:
    """Name and logits of the nested ensembles, fewest leaves first; the last one is that of all leaves.

    `"powers"`: y^b, the means of the first 1, 2, 4, ... and of all leaves, whatever the levels of the model are.
    `"levels"`: the levels of the model, so that one with a level for every count uses every count.
    """
    members = leaves(outputs)
    if which == "powers":
        sizes = [*(2**b for b in range(len(members).bit_length()) if 2**b < len(members)), len(members)]
        return tuple((f"ensemble{size}", torch.stack(members[:size]).mean(0)) for size in sizes)
    for index, level in enumerate(outputs.levels):
        if level.shape != members[0].shape:
            raise ArgumentValueError(
                f"level {index} has shape {tuple(level.shape)}, but the members have {tuple(members[0].shape)}: "
                "expected the predictions of ensembles of the members"
            )
    if not outputs.levels:
        raise ArgumentValueError(
            "the outputs have no levels: ensembles='levels' reads them; ensembles='powers' does not"
        )
    return tuple((f"level{index}", level) for index, level in enumerate(outputs.levels))


def independent_terms(
    outputs: Outputs, target: Tensor, weight: float, reduction: str, label_smoothing: float
) -> Iterator[tuple[str, Tensor]]:
    """The summands of weight * L_I by name: the cross-entropy of every leaf."""
    members = leaves(outputs)
    share = weight * scale(reduction, len(members))
    for index, member in enumerate(members):
        yield f"member{index}/cross_entropy", cross_entropy(member, target, label_smoothing) * share


def scale(reduction: str, terms: int) -> float:
    """What each of so many summands is multiplied by."""
    return 1.0 / terms if reduction == "mean" and terms else 1.0


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raises `ValueError` for a value that is no choice."""
    if value not in choices:
        raise ArgumentValueError(f"{field} is {value!r}: expected {' or '.join(map(repr, choices))}")


def check_weight(field: str, value: float, most: float = math.inf) -> float:
    """The value; raises `ValueError` unless it is a finite number from 0 to `most`."""
    if not (math.isfinite(value) and 0 <= value <= most):
        upper = "" if math.isinf(most) else f", at most {most:g}"
        raise ArgumentValueError(f"{field} is {value}: expected a finite number, not negative{upper}")
    return float(value)
