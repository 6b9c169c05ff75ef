"""Which level answers those who wait, how many of them at once, and who may join them. No clocks, no threads.

Requests are answered one batch after the other, the oldest first. Let n of them wait, for a_1 >= ... >= a_n
milliseconds, let s(l, m) be what level l takes for m samples, and let R = 0.8 SLO. If all of them were answered by
level l, b at a time, request i would be answered at age

    a_i + s(l, b) + ... + s(l, b)       (ceil(i / b) batches; the last one has what is left over)

`plan` takes the best level for which some b keeps all ages below R, with the requests that arrive during the first
batch among them; of these b the one with the shortest mean. So the level falls as more wait, for longer, or arrive
faster. Where no level does, the cheapest: within the SLO if it can, else as fast as it can. The rest of the SLO is for
requests that come faster than they did, and runs that take longer.

`admits` lets a request join if the cheapest level can then answer all of them within the SLO, after the batch that is
running. As any level's plan leaves the cheapest one to fall back on, whoever was admitted is answered in time where
runs take what the table says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Plan", "Table", "admits", "arrival_rate", "plan"]

_SHARE = 0.8  # of the SLO, for plans with levels above the cheapest


@dataclass(frozen=True)
class Table:
    """Milliseconds of every level (the cheapest first) at some batch sizes, in ascending order. No level is faster than
    a cheaper one, and no batch than a smaller one."""

    sizes: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(rows: Sequence[Mapping[int, float]]) -> Table:
        """A table of measured times: each becomes the largest of those that it may not be below."""
        sizes = tuple(sorted(rows[0]))
        ms: list[tuple[float, ...]] = []
        for row in rows:
            below = ms[-1] if ms else (0.0,) * len(sizes)
            ms.append(tuple(accumulate(map(max, below, (row[size] for size in sizes)), max)))
        return Table(sizes, tuple(ms))

    def of_batch(self, level: int, samples: int) -> float:
        """What a batch takes: that of the next size in the table."""
        return next(ms for size, ms in zip(self.sizes, self.ms[level], strict=True) if size >= samples)


class Plan(NamedTuple):
    """The level that runs next, and how many of the oldest requests it answers."""

    level: int
    batch: int


def plan(ages_ms: Sequence[float], arrivals_per_ms: float, table: Table, slo_ms: float) -> Plan:
    """What to run now. `ages_ms`: of those who wait, the oldest first; at least one."""
    waiting = len(ages_ms)
    for level in reversed(range(len(table.ms))):
        means: dict[int, float] = {}
        for size in table.sizes:
            arriving = round(arrivals_per_ms * table.of_batch(level, min(size, waiting)))
            answered = _answered([*ages_ms, *[0.0] * arriving], table, level, size)
            if max(answered) <= _SHARE * slo_ms:
                means[size] = sum(answered) / len(answered)
        if means:
            return Plan(level, min(waiting, min(means, key=means.__getitem__)))
    last = {size: max(_answered(ages_ms, table, 0, size)) for size in table.sizes}
    return Plan(0, min(waiting, min(last, key=last.__getitem__)))


def admits(ages_ms: Sequence[float], busy_ms: float, table: Table, slo_ms: float) -> bool:
    """Whether one more request can be answered in time, and all who wait still can. `busy_ms`: until the next batch
    can begin."""
    ages = [*ages_ms, 0.0]
    return any(busy_ms + max(_answered(ages, table, 0, size)) <= slo_ms for size in table.sizes)


def arrival_rate(arrivals_ms: Iterable[float], now_ms: float, window_ms: float) -> float:
    """Requests per millisecond, from the times at which those of the last `window_ms` came, the newest left out: it is
    among those that wait."""
    recent = sum(now_ms - arrival <= window_ms for arrival in arrivals_ms)
    return max(0, recent - 1) / window_ms


def _answered(ages: Sequence[float], table: Table, level: int, size: int) -> list[float]:
    """The ages at which requests are answered by one level, so many at a time."""
    result: list[float] = []
    passed = 0.0
    for first in range(0, len(ages), size):
        batch = ages[first : first + size]
        passed += table.of_batch(level, len(batch))
        result += [age + passed for age in batch]
    return result
