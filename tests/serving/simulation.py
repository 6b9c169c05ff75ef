"""A queue on paper: requests that arrive at given times, levels that take what a table says."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from anytimeify.serving.policy import Plan, Table, admits, arrival_rate, plan

__all__ = ["Outcome", "poisson", "simulate"]


@dataclass
class Outcome:
    """The age of every answer, its level, and how many were rejected."""

    ages: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    rejected: int = 0

    @property
    def p99(self) -> float:
        return sorted(self.ages)[int(0.99 * len(self.ages))]

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)


def poisson(per_ms: float, duration_ms: float, seed: int = 0) -> list[float]:
    """Times of arrival."""
    generator, times, now = random.Random(seed), [], 0.0
    while (now := now + generator.expovariate(per_ms)) < duration_ms:
        times.append(now)
    return times


def simulate(
    arrivals: Sequence[float],
    table: Table,
    slo_ms: float,
    takes: Callable[[int, int], float] | None = None,
    choose: Callable[..., Plan] = plan,
) -> Outcome:
    """Answers them all. `takes(level, batch)`: what a batch really takes; by default what the table says."""
    takes = takes or table.of_batch
    outcome, waiting, last = Outcome(), deque[float](), deque[float](maxlen=1000)
    free, coming = 0.0, deque(arrivals)
    while coming or waiting:
        if not waiting or (coming and coming[0] <= max(free, waiting[0])):
            now = coming.popleft()
            last.append(now)
            if admits([now - one for one in waiting], max(0.0, free - now), table, slo_ms):
                waiting.append(now)
            else:
                outcome.rejected += 1
            continue
        now = max(free, waiting[0])
        level, batch = choose([now - one for one in waiting], arrival_rate(last, now, slo_ms), table, slo_ms)
        free = now + takes(level, batch)
        for _ in range(batch):
            outcome.ages.append(free - waiting.popleft())
            outcome.levels.append(level)
    return outcome
