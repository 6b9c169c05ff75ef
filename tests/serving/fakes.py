"""Levels that take the time that a table says, on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from anytimeify.serving.backend import Input
from anytimeify.serving.description import Description, ServedLevel

__all__ = ["Clock", "FakeLevels"]

NAMES = ("small", "middle", "full")


@dataclass
class Clock:
    """Seconds that pass when somebody says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_ms(self, ms: float) -> None:
        self.now += ms / 1e3


@dataclass
class FakeLevels:
    """Level k gives the sums of its samples plus k thousand, after `ms[k]` milliseconds for every sample."""

    clock: Clock
    ms: list[float] = field(default_factory=lambda: [1.0, 4.0, 10.0])
    steps: Sequence[float] | None = None  # what the steps of a stream take, where it is resumable
    batch: tuple[int, int | None] | None = (1, None)
    before: Callable[[], object] = lambda: None  # called before every run
    runs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def description(self) -> Description:
        levels = tuple(ServedLevel(place, name, 0.5 * (place + 1), 10**place) for place, name in enumerate(NAMES))
        return Description("fake", levels, self.batch)

    @property
    def inputs(self) -> Sequence[Input]:
        return (Input("x", "float32", (None, 3)),)

    @property
    def resumable(self) -> bool:
        return self.steps is not None

    def taken(self, value: Any, input: Input) -> Any:
        return np.asarray(value, None if hasattr(value, "dtype") else input.dtype)

    def stacked(self, samples: Sequence[Any]) -> Any:
        return np.stack(samples)

    def given(self, value: Any, asked: Sequence[Any]) -> Any:
        return value

    def run(self, level: int, inputs: Sequence[Any]) -> Any:
        self.before()
        (x,) = inputs
        if not np.isfinite(x).all():
            raise ValueError("not a number")
        self.runs.append((level, len(x)))
        self.clock.pass_ms(self.ms[level] * len(x))
        return x.sum(1) + 1000 * level

    def stream(self, inputs: Sequence[Any]) -> Iterator[Any]:
        for level, ms in enumerate(self.steps or self.ms):
            self.clock.pass_ms(ms * len(inputs[0]))
            yield inputs[0].sum(1) + 1000 * level

    def reopened(self) -> Self:
        return self
