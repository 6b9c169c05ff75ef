"""What levels are said to take, after runs that took this and that."""

from __future__ import annotations

import pytest

from anytimeify.serving.latencies import Latencies, Latency


def known(*runs: tuple[int, int, float]) -> Latencies:
    result = Latencies()
    for run in runs:
        result.add(*run)
    return result


def test_nothing_is_known_of_what_has_not_run() -> None:
    assert Latencies().predicted(0, 1) == 0.0
    assert Latencies().summary(0) == {}


def test_predictions_are_cautious() -> None:
    latencies = known(*[(0, 1, float(ms)) for ms in range(1, 101)])
    assert latencies.predicted(0, 1) == 98.0
    assert latencies.summary(0) == {1: Latency(50.5, 99.0, 100)}


def test_the_window_is_bounded_and_runs_are_counted() -> None:
    latencies = known(*[(0, 1, 50.0)] * 30, *[(0, 1, 2.0)] * 100)
    assert latencies.predicted(0, 1) == 2.0
    assert latencies.summary(0)[1] == Latency(2.0, 2.0, 130)


def test_a_level_that_was_slow_once_is_tried_again() -> None:
    latencies = known(*[(1, 1, 10.0)] * 6, (1, 1, 500.0))
    assert latencies.predicted(1, 1) == 500.0
    for _ in range(300):
        latencies.add(0, 1, 2.0)
    assert latencies.predicted(1, 1) == pytest.approx(10.0, rel=0.01)


def test_levels_that_do_not_run_follow_those_that_do() -> None:
    latencies = known(*[(0, 1, 2.0)] * 5, *[(1, 1, 10.0)] * 5, *[(0, 1, 6.0)] * 300)
    assert latencies.predicted(1, 1) == pytest.approx(30.0, rel=0.01)
    for _ in range(300):
        latencies.add(0, 1, 2.0)
    assert latencies.predicted(1, 1) == pytest.approx(10.0, rel=0.01)


def test_other_batches_are_on_a_line() -> None:
    latencies = known(*[(0, 2, 4.0)] * 5, *[(0, 6, 8.0)] * 5)
    assert [latencies.predicted(0, batch) for batch in (1, 2, 3, 6, 12)] == [4.0, 4.0, 5.0, 8.0, 16.0]
