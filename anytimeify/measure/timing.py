"""Timing calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Timing", "quantile", "timed"]

_FEWEST = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the median and the 99th percentile of so many runs."""

    median_ms: float
    p99_ms: float
    runs: int


def timed(
    calls: Sequence[Callable[[], object]], *, seconds: float = 1.0, warm_up: int = 3, repeats: int = 200
) -> list[Timing]:
    """What each of the calls takes. They take turns, so that whatever else the machine does meets all of them.

    After the warm-up, rounds are timed until there are `repeats` of them or `seconds` a call are over, at least 5."""
    for _ in range(warm_up):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while len(times[0]) < _FEWEST or (len(times[0]) < repeats and time.perf_counter() < end):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append((time.perf_counter() - start) * 1e3)
    return [Timing(median(own), quantile(own, 0.99), len(own)) for own in times]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
