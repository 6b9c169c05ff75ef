"""How long levels take, from runs that were timed: a bounded window, which follows the machine.

What a level takes is the 98th percentile of its runs at that batch size, among the last 256 runs of all levels. Of a
level that has not run for so long, what it took at first counts, times what the others take now over what they took at
first: so a level that was slow once, or while the machine was busy, is tried again.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from statistics import median

from anytimeify.measure.timing import quantile

__all__ = ["Latencies", "Latency"]

_WINDOW, _RECENT = 100, 256  # runs that are kept of a level and batch size; runs of all after which they are old
_FIRST = 5  # runs that say what a level takes at first
_PACE = 0.1  # weight of a run in the pace
_CAUTION = 0.98


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch: the median and the 99th percentile of the runs that are kept, and how many there
    were."""

    median_ms: float
    p99_ms: float
    count: int


class Latencies:
    """Of levels and batch sizes. Several threads may read and add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[int, int], deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self._first: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._counts: dict[tuple[int, int], int] = defaultdict(int)
        self._number = 0
        self._pace = 1.0  # what runs take now, over what they took at first

    def add(self, level: int, batch: int, ms: float) -> None:
        """One more run."""
        with self._lock:
            key = (level, batch)
            first = self._first[key]
            if len(first) < _FIRST:
                first.append(ms)
            elif (usual := median(first)) > 0:
                self._pace += _PACE * (ms / usual - self._pace)
            self._number += 1
            self._runs[key].append((self._number, ms))
            self._counts[key] += 1

    def predicted(self, level: int, batch: int) -> float:
        """Milliseconds that a run takes, but for one in fifty; 0 where nothing is known of the level."""
        with self._lock:
            recent = [ms for number, ms in self._runs[level, batch] if number > self._number - _RECENT]
            return quantile(recent, _CAUTION) if recent else self._at_first(level, batch) * self._pace

    def summary(self, level: int) -> dict[int, Latency]:
        """By batch size."""
        with self._lock:
            kept = {
                batch: [ms for _, ms in runs]
                for (one, batch), runs in sorted(self._runs.items())
                if one == level and runs
            }
            return {
                batch: Latency(median(runs), quantile(runs, 0.99), self._counts[level, batch])
                for batch, runs in kept.items()
            }

    def unlock(self) -> None:
        """For a process that was forked while another thread had the lock."""
        self._lock = threading.Lock()

    def _at_first(self, level: int, batch: int) -> float:
        """On the line through the next batch sizes that have run; in proportion beyond the largest."""
        known = {size: median(runs) for (one, size), runs in self._first.items() if one == level and runs}
        if batch in known or not known:
            return known.get(batch, 0.0)
        below = max((size for size in known if size < batch), default=None)
        above = min((size for size in known if size > batch), default=None)
        if below is None or above is None:
            return known[below] * batch / below if below else known[min(known)]
        share = (batch - below) / (above - below)
        return known[below] + share * (known[above] - known[below])
