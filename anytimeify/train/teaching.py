"""An objective with a teacher besides the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.losses.objective import divergence, named_terms
from anytimeify.train.orders import LevelTerms
from anytimeify.train.phases import Teacher

__all__ = ["Taught"]


class Taught(nn.Module):
    """(1 - weight) base + weight sum over levels of T^2 KL(teacher || level).

    Its target is a pair: what `base` takes, and what the teacher predicts. With a taxonomy, levels that have the finest
    classes learn from the teacher."""

    def __init__(self, base: nn.Module, teacher: Teacher, finest: tuple[bool, ...]) -> None:
        super().__init__()
        self.base = base
        self.teacher = teacher
        self.finest = finest

    def terms(self, outputs: Any, target: tuple[Any, Tensor]) -> dict[str, Tensor]:
        labels, taught = target
        found = self._scaled(named_terms(self.base, outputs, labels))
        for index, prediction in enumerate(outputs.levels):
            found |= self._taught(index, prediction, taught)
        return found

    def level_terms(self, index: int, count: int, prediction: Any, target: tuple[Any, Tensor]) -> dict[str, Tensor]:
        """What one level adds to `terms`, of bases that can say so."""
        base = self.base
        if not isinstance(base, LevelTerms):
            raise ArgumentError(f"{type(base).__name__} is no sum over levels: take the order Together()")
        labels, taught = target
        found = self._scaled(base.level_terms(index, count, prediction, labels))
        return {**found, **self._taught(index, prediction, taught)}

    def forward(self, outputs: Any, target: tuple[Any, Tensor]) -> Tensor:
        first, *rest = self.terms(outputs, target).values()
        return sum(rest, first)

    def _scaled(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        share = 1 - self.teacher.weight
        return {name: term * share for name, term in terms.items()} if share else {}

    def _taught(self, index: int, prediction: Any, taught: Tensor) -> dict[str, Tensor]:
        if not self.teacher.weight or not self.finest[index]:
            return {}
        student = prediction[0] if isinstance(prediction, tuple | list) else prediction
        if student.shape != taught.shape:
            raise ArgumentValueError(
                f"the teacher predicts {tuple(taught.shape)}, and level {index} {tuple(student.shape)}: a teacher has "
                "the same classes"
            )
        return {f"level{index}/teacher": divergence(student, taught, self.teacher.temperature) * self.teacher.weight}
