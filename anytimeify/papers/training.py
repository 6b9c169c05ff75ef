"""How a network of a paper is trained, as data: nothing here trains."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from anytimeify.train import Order, Together

__all__ = ["Optimiser", "Schedule", "Training"]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Stochastic gradient descent; `learning_rate` is what the schedule multiplies."""

    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = False

    def build(self, parameters: Iterable[Any]) -> torch.optim.SGD:
        """The optimiser of these parameters, or parameter groups."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes over the epochs.

    Fields
        kind: `"cosine"`: from 1 to 0 over the whole training, without restarts; `"steps"`: constant between
            milestones; `"cyclic"`: cycles of `cycle` epochs that fall linearly from `cycle` to 1, after one epoch at 1
            (Mehta et al. 2019, ESPNetv2).
        milestones: epochs from which on `gamma` multiplies the rate once more; fractions where papers count steps.
        gamma: that factor.
        cycle: epochs in a cycle.
    """

    kind: Literal["cosine", "steps", "cyclic"]
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cycle: int = 5

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in an epoch, counted from 0, of so many."""
        decay = self.gamma ** bisect_right(self.milestones, epoch)
        if self.kind == "cosine":
            return decay * (1 + math.cos(math.pi * epoch / epochs)) / 2
        if self.kind == "cyclic" and epoch >= 1:
            return decay * (self.cycle - int(epoch - 1) % self.cycle)
        return decay


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training recipe. `batch`: samples in a step; `data`: what the paper trains on; `augmentation`: in words;
    `order`: how the levels take turns within a step."""

    data: str
    optimiser: Optimiser
    schedule: Schedule
    batch: int
    epochs: int
    augmentation: tuple[str, ...] = ()
    order: Order = field(default_factory=Together)

    def learning_rate(self, epoch: float) -> float:
        """The learning rate in an epoch, counted from 0."""
        return self.optimiser.learning_rate * self.schedule.factor(epoch, self.epochs)
