"""A queue in front of fake levels. No test waits for time to pass: runs end when the test says so."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from anytimeify import AnytimeError, ArgumentError, ArgumentValueError
from anytimeify.runtime import Adaptive, AnytimeRunner, Overloaded
from tests.serving.fakes import Clock, FakeLevels

X = np.ones(3, np.float32)
SOON = 5  # seconds after which something hangs


class Gate:
    """Holds runs back until it opens."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self) -> None:
        self.reached.release()
        assert self.open.wait(SOON)


def server(slo_ms: float = 100.0, gate: Gate | None = None, **options: Any) -> tuple[Adaptive, FakeLevels]:
    """Levels of 1, 4 and 10 ms a sample."""
    clock = Clock()
    levels = FakeLevels(clock)
    result = Adaptive(AnytimeRunner(levels, clock=clock), slo_ms, clock=clock, **options)
    levels.runs.clear()
    if gate is not None:
        levels.before = gate
    return result, levels


def test_one_request_gets_the_full_level() -> None:
    adaptive, levels = server()
    with adaptive:
        value, level, elapsed_ms = adaptive.predict(X)
    assert (value, level.name) == (2003, "full")
    assert elapsed_ms == pytest.approx(10)
    assert levels.runs == [(2, 1)]
    statistics = adaptive.statistics()
    assert (statistics.levels, statistics.rejected, statistics.failed) == ((0, 0, 1), 0, 0)
    assert statistics.service_ms.median == pytest.approx(10)
    assert statistics.waiting_ms.largest == 0.0


def test_the_level_falls_with_the_queue_and_rises_again() -> None:
    gate = Gate()
    adaptive, levels = server(30.0, gate, max_batch=4)
    with adaptive:
        first = adaptive.submit(X)
        assert gate.reached.acquire(timeout=SOON)
        rest = [adaptive.submit(X * place) for place in range(8)]
        gate.open.set()
        assert first.result(SOON).level.name == "full"
        answers = [one.result(SOON) for one in rest]
        assert [float(one.value) % 1000 for one in answers] == [3.0 * place for place in range(8)]
        assert answers[0].level.name == "small"
        assert all(one.elapsed_ms <= 30.0 for one in answers)
        levels.clock.pass_ms(10_000)
        assert adaptive.predict(X).level.name == "full"
    assert sum(batch for _, batch in levels.runs) == 10
    assert sum(adaptive.statistics().levels) == 10


def test_more_than_can_be_served_is_refused_at_once() -> None:
    gate = Gate()
    adaptive, _ = server(12.6, gate)
    with adaptive:
        futures = [adaptive.submit(X)]
        assert gate.reached.acquire(timeout=SOON)  # 10 ms, and 2.6 are left
        futures += [adaptive.submit(X), adaptive.submit(X)]
        with pytest.raises(Overloaded, match="2 requests wait, and the cheapest level cannot answer one more within"):
            adaptive.submit(X)
        assert issubclass(Overloaded, AnytimeError)
        gate.open.set()
        assert all(one.result(SOON).elapsed_ms <= 12.6 for one in futures)
    assert adaptive.statistics().rejected == 1


def test_closing_answers_who_waits() -> None:
    gate = Gate()
    adaptive, _ = server(1000.0, gate)
    futures = [adaptive.submit(X) for _ in range(20)]
    closing = threading.Thread(target=adaptive.close)
    closing.start()
    gate.open.set()
    closing.join(SOON)
    assert all(one.done() for one in futures)
    with pytest.raises(AnytimeError, match="was closed"):
        adaptive.submit(X)
    adaptive.close()


def test_a_batch_waits_for_others() -> None:
    adaptive, levels = server(1e9, max_batch=2, max_wait_ms=1e8)
    levels.ms = [1.0, 1.0, 1.0]
    with adaptive:
        futures = [adaptive.submit(X) for _ in range(2)]  # the second fills the batch
        assert [one.result(SOON).level.index for one in futures] == [2, 2]
        last = adaptive.submit(X)  # and closing waits no longer
    assert last.done()


def test_asyncio_asks_too() -> None:
    adaptive, _ = server(1000.0)

    async def ask() -> list[float]:
        answers = await asyncio.gather(*(adaptive.answer(X * place) for place in range(10)))
        return [float(one.value) % 1000 for one in answers]

    with adaptive:
        assert asyncio.run(ask()) == [3.0 * place for place in range(10)]


def test_who_gives_up_is_not_served() -> None:
    gate = Gate()
    adaptive, levels = server(1000.0, gate)
    with adaptive:
        adaptive.submit(X)
        assert gate.reached.acquire(timeout=SOON)
        given_up = adaptive.submit(X)
        assert given_up.cancel()
        gate.open.set()
    assert sum(batch for _, batch in levels.runs) == 1


def test_a_run_that_fails_is_told_to_those_who_asked() -> None:
    adaptive, _ = server()
    with adaptive:
        with pytest.raises(ValueError, match="not a number"):
            adaptive.predict(X * np.nan)
        assert adaptive.predict(X).level.name == "full"
    assert adaptive.statistics().failed == 1


def test_one_that_fails_leaves_the_others_of_its_batch_alone() -> None:
    gate = Gate()
    adaptive, levels = server(1e6, gate)
    with adaptive:
        adaptive.submit(X)
        assert gate.reached.acquire(timeout=SOON)
        good, bad, other = (adaptive.submit(X * scale) for scale in (1, np.float32("nan"), 2))
        gate.open.set()
        assert [float(one.result(SOON).value) for one in (good, other)] == [2003.0, 2006.0]
        with pytest.raises(ValueError, match="not a number"):
            bad.result(SOON)
    assert (sum(adaptive.statistics().levels), adaptive.statistics().failed) == (3, 1)
    assert levels.runs == [(2, 1)] * 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "0 inputs given: expected 1"),
        ((X, X), "2 inputs given"),
        ((X[None],), r"has the shape \[1, 3\]: expected \[3\]"),
        ((X.astype(int),), "is of type int64: expected float32"),
    ],
)
def test_wrong_requests_are_refused(inputs: tuple[Any, ...], message: str) -> None:
    adaptive, _ = server()
    with adaptive, pytest.raises(ArgumentError if "inputs" in message else ArgumentValueError, match=message):
        adaptive.submit(*inputs)
    assert adaptive.statistics().levels == (0, 0, 0)


@pytest.mark.parametrize("options", [{"slo_ms": 0}, {"max_batch": 0}, {"max_wait_ms": -1}, {"max_wait_ms": 200}])
def test_wrong_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentValueError, match="expected a positive limit"):
        server(**options)


def test_models_without_a_batch_of_one_are_refused() -> None:
    clock = Clock()
    run = AnytimeRunner(FakeLevels(clock, batch=(2, None)), clock=clock)
    with pytest.raises(ArgumentError, match="takes no batch of one sample"):
        Adaptive(run, 100.0)


def test_many_threads_ask() -> None:
    adaptive, _ = server(1e6)
    with adaptive, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda place: adaptive.predict(X * place), range(200)))
    assert [float(one.value) % 1000 for one in answers] == [3.0 * place % 1000 for place in range(200)]
