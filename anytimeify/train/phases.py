"""What is trained besides, or after, the rest: as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anytimeify.errors import ArgumentValueError
from anytimeify.losses.ensembles import check_weight
from anytimeify.train.checks import check_fields, check_range
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import Order
from anytimeify.train.schedule import Schedule

__all__ = ["Parts", "Phase", "Teacher"]

# "all"; "levels": all but a learned consensus; "consensus": that alone; or patterns of names of parameters.
Parts = Literal["all", "levels", "consensus"] | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Every level also learns from a network that stays as it is: by default the full level as it was before the
    training, which is the backbone before it was converted.

    The loss becomes (1 - weight) loss + weight sum over levels of T^2 KL(teacher || level), with T the `temperature`
    (Hinton et al. 2015). With a taxonomy the teacher teaches the finest classes.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_weight("weight", self.weight, 1.0)
        if not self.temperature > 0:
            raise ArgumentValueError(f"temperature is {self.temperature}: expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What follows the training proper, with an optimiser of its own; fields that are None are as there.

    Fields
        epochs: how many; the schedule goes over these alone.
        parts: which parameters are trained: `"all"`; `"levels"`: all but those of a learned consensus; `"consensus"`:
            those alone; or patterns of names, such as `("layer4.*", "fc.*")`. All others have no gradient.
        teacher: whom levels learn from besides; nobody where it is None.
        frozen_norms: whether norms stay in eval mode.
    """

    epochs: int
    parts: Parts = "all"
    optimiser: Optimiser | None = None
    schedule: Schedule | None = None
    batch: int | None = None
    order: Order | None = None
    teacher: Teacher | None = None
    frozen_norms: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs < 1:
            raise ArgumentValueError(f"a phase has {self.epochs} epochs: expected 1 or more")
        check_range(self, 1, "batch")
