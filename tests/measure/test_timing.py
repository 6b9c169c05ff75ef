"""Calls are timed in turns, and an outlier does not count."""

from __future__ import annotations

import time

import pytest

from anytimeify.measure.timing import quantile, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_the_median_shrugs_off_an_outlier(clock: list[float]) -> None:
    calls = 0

    def jump() -> None:
        nonlocal calls
        calls += 1
        clock[0] += 0.1 if calls == 6 else 0.001

    (timing,) = timed([jump], seconds=1, repeats=20)
    assert [timing.median_ms, timing.p99_ms, timing.runs] == pytest.approx([1, 100, 20])
    assert calls == 3 + 20
    calls = 0
    assert timed([jump], seconds=0.05, repeats=20)[0].runs == 5  # it took all of the time; five are timed all the same
    assert calls == 3 + 5


def test_calls_take_turns(clock: list[float]) -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    first, second = timed([lambda: call("a", 0.001), lambda: call("b", 0.002)], seconds=1, warm_up=1, repeats=5)
    assert [first.median_ms, second.median_ms] == pytest.approx([1, 2])
    assert order == ["a", "b"] * 6


def test_quantiles_are_values() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1.0, 1.0, 2.0, 3.0, 4.0]
