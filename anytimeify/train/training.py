"""How a network is trained, as data: nothing here trains. `anytimeify.train.fit` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from anytimeify.errors import ArgumentValueError
from anytimeify.train.checks import check_fields, check_range
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import Order, Together
from anytimeify.train.phases import Parts, Phase, Teacher
from anytimeify.train.schedule import Schedule

__all__ = ["Training"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training recipe. It is data: `anytimeify.train.as_json` writes it, and `training_of` reads it.

    What is trained
        data: what the recipe was made for, in words; `fit` is given the data themselves.
        parts: which parameters; see `Phase`.
        order: how the levels take turns within a step.
        frozen_norms: whether norms stay in eval mode, with the statistics that they have.
        teacher: whom levels learn from besides the labels.
        phases: what follows.

    How
        optimiser, schedule, epochs.
        batch: samples in a step, of all processes together.
        accumulate: into how many parts a batch is cut that go forward and backward one by one.
        clip: the largest norm of the gradient.
        ema: the decay of the average of the weights that is evaluated, and kept at the end.
        refresh_masks: steps between two estimates of masks (`NestedWeights`); 0: masks stay.
        calibrate: batches that the statistics of norms are estimated anew with at the end. None: 32 where the weights
            were averaged or masks refreshed, none otherwise.

    On what
        augmentation: steps by name, such as `("pad 4 and crop", "flip", "normalise")`; see
            `anytimeify.train.augmentation`.
        mixup, cutmix: alpha of the Beta distribution that shares of mixed samples are drawn from; 0: not at all. With
            both, each step draws one of them.
        label_smoothing: in place of the loss's own.
        holdout: share of the training samples that is kept apart, and evaluated in place of the test samples.
        seed: of everything that is drawn.

    By what means
        precision: of the forward pass.
        compile: whether steps run by `torch.compile`.
        channels_last: the layout of images and kernels.
        workers: processes that load samples; results do not depend on it.
        shard: with several processes, whether parameters, gradients and the optimiser are spread over them (FSDP2), or
            every process has all of them (DistributedDataParallel).
    """

    data: str
    optimiser: Optimiser
    schedule: Schedule
    batch: int
    epochs: int
    augmentation: tuple[str, ...] = ()
    order: Order = field(default_factory=Together)
    parts: Parts = "all"
    frozen_norms: bool = False
    teacher: Teacher | None = None
    phases: tuple[Phase, ...] = ()
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    refresh_masks: int = 0
    calibrate: int | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float | None = None
    holdout: float = 0.0
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    channels_last: bool = False
    workers: int = 0
    shard: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, 1, "batch", "epochs", "accumulate")
        check_range(self, 0, "mixup", "cutmix", "refresh_masks", "calibrate", "workers")
        check_range(self, 0, "label_smoothing", most=1)
        if self.clip is not None and self.clip <= 0:
            raise ArgumentValueError(f"clip is {self.clip}: expected a positive number")
        if not 0 <= self.holdout < 1:
            raise ArgumentValueError(f"holdout is {self.holdout}: expected a share of the samples, less than 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ArgumentValueError(f"ema is {self.ema}: expected a decay between 0 and 1")
        if not -(2**63) <= self.seed < 2**64:
            raise ArgumentValueError(f"seed is {self.seed}: expected a whole number of 64 bits")

    def learning_rate(self, epoch: float) -> float:
        """The learning rate in an epoch, counted from 0."""
        return self.optimiser.learning_rate * self.schedule.factor(epoch, self.epochs)

    def for_epochs(self, epochs: int) -> Training:
        """The same over so many epochs: milestones, cycles and the warm-up keep their share of it. Phases stay."""
        share = epochs / self.epochs
        schedule = replace(
            self.schedule,
            milestones=tuple(milestone * share for milestone in self.schedule.milestones),
            cycle=max(1, round(self.schedule.cycle * share)),
            warm_up=self.schedule.warm_up * share,
        )
        return replace(self, epochs=epochs, schedule=schedule)

    @property
    def all_epochs(self) -> int:
        """Those of the phases too."""
        return self.epochs + sum(phase.epochs for phase in self.phases)

    def stages(self) -> Iterator[Training]:
        """This training without its phases, then every phase as a training of its own."""
        yield replace(self, phases=())
        for phase in self.phases:
            yield replace(
                self,
                phases=(),
                epochs=phase.epochs,
                parts=phase.parts,
                optimiser=phase.optimiser or self.optimiser,
                schedule=phase.schedule or self.schedule,
                batch=phase.batch or self.batch,
                order=phase.order or self.order,
                teacher=phase.teacher,
                frozen_norms=phase.frozen_norms,
            )
