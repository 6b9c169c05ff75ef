"""What an experiment is run on: the data, and whether networks and trainings are those of the paper or small ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.data import Data, open_data
from anytimeify.train.training import Training

__all__ = ["Scale", "Setting"]

Scale: TypeAlias = Literal["auto", "paper", "small"]

# Data that the papers train on; their own scale is the default for these alone.
_OF_PAPERS = ("cifar10", "cifar100", "imagefolder")
_SMALL_EPOCHS = 15
_SMALL_BATCH = 64
_WARM_UP = 0.1  # of a small training


@dataclass(frozen=True)
class Setting:
    """The data and the scale of an experiment.

    Fields
        data: what `anytimeify.train.open_data` takes, such as `"mnist5k"` or `"cifar100:DIR"`.
        scale: `"paper"`: networks and trainings as printed; `"small"`: seconds to a minute for a network on one core;
            `"auto"`: the paper's for CIFAR and folders of images, small for everything else.
        epochs: of every training; by default the paper's, or 15 at the small scale.
    """

    data: str
    scale: Scale = "auto"
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, str):
            raise ArgumentError(f"data is {self.data!r}: expected a text, such as 'mnist5k'")
        if self.scale not in ("auto", "paper", "small"):
            raise ArgumentValueError(f"scale is {self.scale!r}: expected auto, paper or small")
        if self.epochs is not None and (isinstance(self.epochs, bool) or self.epochs < 1):
            raise ArgumentValueError(f"epochs is {self.epochs!r}: expected a whole number, 1 or more")

    @property
    def small(self) -> bool:
        """Whether networks are small and trainings short."""
        return self.scale == "small" or (self.scale == "auto" and self.data.partition(":")[0] not in _OF_PAPERS)

    @cached_property
    def loaded(self) -> Data:
        """The data themselves; read once."""
        return open_data(self.data)

    @property
    def classes(self) -> int:
        """Of the finest labels."""
        return len(self.loaded.classes)

    @property
    def taxonomy(self) -> Taxonomy:
        """That of the data; of data without one, two coarse classes: the first half of the classes and the second."""
        known = self.loaded.taxonomy
        if known is not None:
            return known
        count = self.classes
        return Taxonomy.from_parents([int(index >= (count + 1) // 2) for index in range(count)])

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of the images that networks take: three channels, and the size of the data; at the small scale at most 16, of
        images in colour at most 32."""
        import torch

        given, _ = self.loaded.train.take(torch.tensor([0]))
        height, width = given[0].shape[-2:]
        most = 16 if len(given[0]) == 1 else 32
        if self.small:
            height, width = (min(most, side) for side in (height, width))
        return 3, int(height), int(width)

    def training(self, printed: Training, *, rate: float = 0.05) -> Training:
        """How a network is trained: as printed, or at the small scale by the same optimiser and order at the rate that
        is given, warmed up, and falling to zero over the epochs that there are."""
        epochs = self.epochs or (_SMALL_EPOCHS if self.small else printed.epochs)
        share = epochs / printed.epochs
        schedule = replace(
            printed.schedule, milestones=tuple(milestone * share for milestone in printed.schedule.milestones)
        )
        phases = tuple(
            replace(phase, epochs=max(1, round(phase.epochs * share)), schedule=None) for phase in printed.phases
        )
        if not self.small:
            return printed if self.epochs is None else replace(printed, epochs=epochs, schedule=schedule, phases=phases)
        return replace(
            printed,
            epochs=epochs,
            batch=_SMALL_BATCH,
            optimiser=replace(printed.optimiser, learning_rate=rate),
            schedule=replace(schedule, kind="cosine", milestones=(), per="step", warm_up=_WARM_UP * epochs),
            phases=phases,
            clip=5.0,
            augmentation=("normalise",),
        )
