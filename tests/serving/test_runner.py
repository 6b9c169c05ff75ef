"""Levels by name and by deadline, on a clock that the test winds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from anytimeify import ArgumentError, ArgumentValueError, BudgetError
from anytimeify.runtime import AnytimeRunner
from tests.serving.fakes import Clock, FakeLevels

X = np.ones((2, 3), np.float32)


def runner(**options: Any) -> tuple[AnytimeRunner, FakeLevels, Clock]:
    """Levels of 1, 4 and 10 ms a sample, by default."""
    clock = Clock()
    levels = FakeLevels(clock, **options)
    return AnytimeRunner(levels, clock=clock), levels, clock


@pytest.mark.parametrize(
    ("level", "index"), [(0, 0), (-1, 2), ("middle", 1), (1.5, 2), (0.5, 0), (None, 2), (np.int64(1), 1)]
)
def test_levels_have_names(level: Any, index: int) -> None:
    value, found, elapsed_ms = runner()[0].predict(X, level=level)
    assert found.index == index
    assert np.array_equal(value, [3 + 1000 * index] * 2)
    assert elapsed_ms == pytest.approx(2 * [1, 4, 10][index])


def test_a_level_of_the_runner_names_itself() -> None:
    run, _, _ = runner()
    assert [run.predict(X, level=level).level.name for level in run.levels] == ["small", "middle", "full"]


@pytest.mark.parametrize(
    ("deadline", "index"), [(-1, 0), (0, 0), (0.5, 0), (1, 0), (3.9, 0), (4.1, 1), (9, 1), (10.1, 2), (math.inf, 2)]
)
def test_the_best_level_that_fits_the_deadline(deadline: float, index: int) -> None:
    prediction = runner()[0].predict(X[:1], deadline_ms=deadline)
    assert prediction.level.index == index
    assert prediction.elapsed_ms <= max(deadline, 1.0) + 1e-9


def test_deadlines_hold_for_the_batch_that_is_given() -> None:
    run, _, _ = runner()
    run.warm_up([2])
    assert run.predict(X[:1], deadline_ms=11).level.index == 2
    assert run.predict(X, deadline_ms=11).level.index == 1


def test_what_the_inputs_take_counts_too() -> None:
    run, levels, clock = runner()

    class Slow(FakeLevels):
        def taken(self, value: Any, input: Any) -> Any:
            clock.pass_ms(7)
            return value

    run = AnytimeRunner(Slow(clock, levels.ms), clock=clock)
    assert run.predict(X[:1], deadline_ms=11).level.index == 0


def test_levels_follow_the_machine() -> None:
    run, levels, _ = runner()
    levels.ms = [3.0, 12.0, 30.0]
    chosen = [run.predict(X[:1], deadline_ms=11).level.index for _ in range(5)]
    assert chosen == [2, 1, 0, 0, 0]  # each is found out once
    levels.ms = [1.0, 4.0, 10.0]
    chosen = [run.predict(X[:1], deadline_ms=11).level.index for _ in range(600)]
    assert chosen[0] == 0
    assert chosen[-1] == 2


def test_latencies_are_shown() -> None:
    run, _, _ = runner()
    assert [level.latencies[1].count for level in run.levels] == [5, 5, 5]
    assert [level.latencies[1].median_ms for level in run.levels] == pytest.approx([1, 4, 10])
    run.predict(X, level=1)
    assert {batch: row.count for batch, row in run.levels[1].latencies.items()} == {1: 5, 2: 1}


def test_without_warming_up_the_first_runs_tell() -> None:
    clock = Clock()
    levels = FakeLevels(clock)
    run = AnytimeRunner(levels, warm_up=False, clock=clock)
    assert levels.runs == []
    assert [run.predict(X[:1], deadline_ms=5).level.index for _ in range(4)] == [2, 1, 1, 1]


def test_a_stream_gets_better_until_time_is_up() -> None:
    run, _, _ = runner()

    def reached(deadline: float | None) -> list[str]:
        found = list(run.stream(X[:1], deadline_ms=deadline))
        assert all(one.elapsed_ms < other.elapsed_ms for one, other in pairwise(found))
        return [one.level.name for one in found]

    assert reached(None) == ["small", "middle", "full"]
    assert reached(14.9) == ["small", "middle"]  # 1 + 4, and 10 more would be 15
    assert reached(15.1) == ["small", "middle", "full"]
    assert reached(0) == ["small"]


def test_steps_of_a_resumable_stream_take_what_they_take() -> None:
    run, _, _ = runner(steps=[1.0, 3.0, 6.0])
    assert [one.elapsed_ms for one in run.stream(X[:1], deadline_ms=10.1)] == pytest.approx([1, 4, 10])
    assert len(list(run.stream(X[:1], deadline_ms=9.9))) == 2


def test_time_of_whoever_reads_the_stream_counts() -> None:
    run, _, clock = runner()
    seen = []
    for prediction in run.stream(X[:1], deadline_ms=15.1):
        seen.append(prediction.level.index)
        clock.pass_ms(5)
    assert seen == [0, 1]


def test_a_stream_is_left_between_steps() -> None:
    run, levels, _ = runner()
    before = len(levels.runs)
    stream = run.stream(X)
    assert next(stream).level.index == 0
    assert len(levels.runs) == before


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ((), {}, ArgumentError, r"0 inputs given: expected 1 \(x\)"),
        ((X, X), {}, ArgumentError, "2 inputs given: expected 1"),
        ((X[:, :2],), {}, ArgumentValueError, r"input 'x' has the shape \[2, 2\]: expected \[any, 3\]"),
        ((X[0],), {}, ArgumentValueError, r"input 'x' has the shape \[3\]"),
        ((X.astype(float),), {}, ArgumentValueError, "input 'x' is of type float64: expected float32"),
        ((X,), {"level": 3}, BudgetError, r"there is no level 3: levels are 0 \(small\), 1 \(middle\), 2 \(full\)"),
        ((X,), {"level": "large"}, BudgetError, "there is no level 'large'"),
        ((X,), {"level": [1]}, ArgumentError, r"a level is given as \[1\]"),
        ((X,), {"level": 1, "deadline_ms": 3}, ArgumentError, "leave out deadline_ms"),
        ((X,), {"deadline_ms": "3"}, ArgumentError, "deadline_ms='3': expected a number"),
        ((X,), {"deadline_ms": math.nan}, ArgumentError, "deadline_ms=nan"),
    ],
)
def test_wrong_calls_are_refused(
    inputs: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    run, levels, _ = runner()
    before = len(levels.runs)
    with pytest.raises(error, match=message):
        run.predict(*inputs, **options)
    assert len(levels.runs) == before


def test_streams_refuse_at_the_call() -> None:
    with pytest.raises(ArgumentError, match="0 inputs given"):
        runner()[0].stream()


def test_batches_that_the_model_does_not_take_are_refused() -> None:
    run, _, _ = runner(batch=(2, 4))
    assert run.levels[0].latencies.keys() == {2}
    with pytest.raises(ArgumentValueError, match="a batch of 1 was given: expected 2 to 4"):
        run.predict(X[:1])


def test_lists_are_taken() -> None:
    assert runner()[0].predict([[1, 2, 3]], level=0).value == [6]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "a int is given: expected a path, or an AnytimeModel"),
        ("net.onnx", {"backend": "tensorrt"}, "backend='tensorrt': expected onnxruntime or torch"),
        ("net.onnx", {"threads": 0}, "threads=0"),
        ("net.onnx", {"backend": "torch"}, "is run by backend='onnxruntime'"),
        ("net.pt2", {"backend": "onnxruntime"}, "net.pt2 is run by backend='torch', not by onnxruntime"),
        ("net.safetensors", {"backend": "onnxruntime"}, "is run by backend='torch'"),
    ],
)
def test_other_sources_are_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AnytimeRunner(source, **options)
