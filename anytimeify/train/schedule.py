"""How the learning rate goes over a training, as data."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from anytimeify.train.checks import check_fields, check_range

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes over the epochs.

    Fields
        kind: `"cosine"`: from 1 to 0 over the whole training, without restarts; `"steps"`: constant between
            milestones; `"cyclic"`: cycles of `cycle` epochs that fall linearly from `cycle` to 1, after one epoch at 1
            (Mehta et al. 2019, ESPNetv2); `"linear"`: from 1 to 0 over the whole training.
        milestones: epochs from which on `gamma` multiplies the rate once more; fractions where papers count steps.
        gamma: that factor.
        cycle: epochs in a cycle.
        per: whether the rate changes with every epoch or with every step, of which the epoch is then a fraction.
        warm_up: so many epochs at the start, a fraction too, in which the rate rises linearly at every step, from
            `warm_up_from` of what it would be to all of it.
    """

    kind: Literal["cosine", "steps", "cyclic", "linear"]
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cycle: int = 5
    per: Literal["epoch", "step"] = "epoch"
    warm_up: float = 0.0
    warm_up_from: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, 0, "warm_up", "warm_up_from", "gamma")
        check_range(self, 1, "cycle")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in an epoch, counted from 0, of so many; where the rate changes with
        every epoch a fraction of one counts for the warm-up alone, and for milestones."""
        rising = 1.0
        if epoch < self.warm_up:
            rising = self.warm_up_from + (1 - self.warm_up_from) * epoch / self.warm_up
        decay = rising * self.gamma ** bisect_right(self.milestones, epoch)
        place = epoch if self.per == "step" else math.floor(epoch)
        if self.kind == "cosine":
            return decay * (1 + math.cos(math.pi * place / epochs)) / 2
        if self.kind == "linear":
            return decay * (1 - place / epochs)
        if self.kind == "cyclic" and place >= 1:
            return decay * (self.cycle - (place - 1) % self.cycle)
        return decay
