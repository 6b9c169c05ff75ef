"""`Adaptive`: a queue in front of a runner, which lowers the level as the queue grows."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from anytimeify.errors import AnytimeError, ArgumentError, ArgumentValueError, Overloaded
from anytimeify.measure.timing import quantile
from anytimeify.serving.backend import Input, check
from anytimeify.serving.policy import Table, admits, arrival_rate, plan
from anytimeify.serving.runner import AnytimeRunner, Prediction, smallest_batch

__all__ = ["Adaptive", "Quantiles", "Statistics"]

_ARRIVALS, _KEPT = 1_000, 10_000  # arrivals that the rate is taken from; answers that quantiles are taken from


class Quantiles(NamedTuple):
    """Milliseconds; 0 where there are none."""

    median: float
    p95: float
    p99: float
    largest: float

    @staticmethod
    def of(values: Iterable[float]) -> Quantiles:
        kept = list(values)
        return (
            Quantiles(*(quantile(kept, share) for share in (0.5, 0.95, 0.99, 1.0))) if kept else Quantiles(*(0.0,) * 4)
        )


@dataclass(frozen=True)
class Statistics:
    """What was served. `levels`: answers of each level; `waiting_ms` is before a level ran, `service_ms` while it did:
    both of the last ten thousand answers."""

    levels: tuple[int, ...]
    rejected: int
    failed: int
    waiting_ms: Quantiles
    service_ms: Quantiles


@dataclass(frozen=True)
class _Request:
    asked: tuple[Any, ...]
    sample: tuple[Any, ...]
    arrived: float
    future: Future[Prediction]


class Adaptive:
    """Answers requests of one sample each, in batches, with the best level that keeps every answer within `slo_ms`.

        with Adaptive(AnytimeRunner("net.onnx"), slo_ms=50) as server:
            value, level, elapsed_ms = server.predict(image)      # image: without a batch
            future = server.submit(image)
            ... = await server.answer(image)

    One thread runs the batches; any number may ask. `anytimeify.serving.policy` says which level and batch they get.
    Requests are dropped only where the cheapest level would answer them too late: then `Overloaded` is raised at once.
    """

    def __init__(
        self,
        runner: AnytimeRunner,
        slo_ms: float,
        max_batch: int = 8,
        max_wait_ms: float = 0.0,
        *,
        warm_up: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Parameters
            runner: what computes; it may be used beside this.
            slo_ms: from `submit` until the answer, in milliseconds.
            max_batch: the largest batch.
            max_wait_ms: how long the first request of a batch waits for others while nothing runs.
            warm_up: run every level at every batch size first, on made-up inputs. Without it, the first requests tell.
            clock: gives seconds.

        Raises `ArgumentError` where the model takes no batch of one sample, or its inputs have no common batch."""
        if not slo_ms > 0 or not 0 <= max_wait_ms < slo_ms or max_batch < 1:
            raise ArgumentValueError(
                f"slo_ms={slo_ms}, max_batch={max_batch}, max_wait_ms={max_wait_ms}: expected a positive limit, "
                "batches of 1 or more, and to wait for less than the limit"
            )
        self.runner, self.slo_ms, self.max_wait_ms = runner, float(slo_ms), float(max_wait_ms)
        self._sizes = _sizes(runner, max_batch)
        if warm_up:
            runner.warm_up(self._sizes)
        self._table = self._measured()
        self._sample = [Input(one.name, one.dtype, one.sizes[1:]) for one in runner.backend.inputs]
        self._clock, self._process = clock, os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._arrivals: deque[float] = deque(maxlen=_ARRIVALS)
        self._busy_until = float("-inf")
        self._closed = False
        self._begun = False  # whether the queue is being answered: then nobody is kept for others to join
        self._answers = [0] * len(self._table.ms)
        self._rejected = self._failed = 0
        self._times: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._thread = threading.Thread(target=self._serve, name="anytimeify-adaptive", daemon=True)
        self._thread.start()

    def submit(self, *inputs: Any) -> Future[Prediction]:
        """Asks for the prediction of one sample: inputs as `runner.predict` takes them, without the batch.

        Raises `Overloaded` where it would come too late, and for wrong inputs what `runner.predict` does."""
        if os.getpid() != self._process:
            raise AnytimeError("the process was forked after Adaptive was made, whose thread is not here: make it anew")
        backend = self.runner.backend
        sample = tuple(backend.taken(value, input) for value, input in zip(inputs, self._sample, strict=False))
        check(self._sample, [*sample, *inputs[len(sample) :]], None)
        with self._changed:
            if self._closed:
                raise AnytimeError("this server was closed: it takes no more requests")
            now = self._clock()
            self._arrivals.append(now * 1e3)
            if not admits(self._ages(now), self._busy_ms(now), self._table, self.slo_ms):
                self._rejected += 1
                raise Overloaded(
                    f"{len(self._waiting)} requests wait, and the cheapest level cannot answer one more within "
                    f"{self.slo_ms:g} ms: ask again later, or elsewhere"
                )
            request = _Request(inputs, sample, now, Future())
            self._waiting.append(request)
            self._changed.notify_all()
        return request.future

    def predict(self, *inputs: Any) -> Prediction:
        """The same, and waits for the answer."""
        return self.submit(*inputs).result()

    async def answer(self, *inputs: Any) -> Prediction:
        """The same for asyncio. Cancelling it takes the request back, if no level has begun it."""
        return await asyncio.wrap_future(self.submit(*inputs))

    def statistics(self) -> Statistics:
        """What was served so far."""
        with self._changed:
            times = list(self._times)
            waiting, service = (Quantiles.of(values) for values in (zip(*times, strict=True) if times else ((), ())))
            return Statistics(tuple(self._answers), self._rejected, self._failed, waiting, service)

    def close(self) -> None:
        """Answers all who wait, and takes no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # In the thread.

    def _serve(self) -> None:
        while (planned := self._next()) is not None:
            level, requests = planned
            if requests:
                self._answer(level, requests)
                table = self._measured()
                with self._changed:
                    self._table, self._busy_until = table, float("-inf")

    def _next(self) -> tuple[int, list[_Request]] | None:
        """Waits for requests; None when there will be none."""
        with self._changed:
            self._begun = bool(self._waiting)
            while not self._waiting or self._hold(self._clock()) > 0:
                if self._closed and not self._waiting:
                    return None
                self._changed.wait(self._hold(self._clock()) if self._waiting else None)
            self._begun, now = True, self._clock()
            level, batch = plan(
                self._ages(now), arrival_rate(self._arrivals, now * 1e3, self.slo_ms), self._table, self.slo_ms
            )
            taken = [self._waiting.popleft() for _ in range(batch)]
            requests = [request for request in taken if request.future.set_running_or_notify_cancel()]
            self._busy_until = now + self._table.of_batch(level, batch) / 1e3
            return level, requests

    def _answer(self, level: int, requests: Sequence[_Request]) -> None:
        backend, count, begin = self.runner.backend, len(requests), self._clock()
        try:
            samples = zip(*(request.sample for request in requests), strict=True)
            value = self.runner.run(level, [backend.stacked(values) for values in samples], count)
            parts = [backend.given(_part(value, place, count), one.asked) for place, one in enumerate(requests)]
        except Exception as error:
            if count > 1:  # it may be about one of them, as when samples are of different shapes
                for request in requests:
                    self._answer(level, [request])
                return
            with self._changed:  # whoever asked gets it
                self._failed += count
            for request in requests:
                request.future.set_exception(error)
            return
        now = self._clock()
        with self._changed:
            self._answers[level] += count
            self._times.extend(((begin - one.arrived) * 1e3, (now - begin) * 1e3) for one in requests)
        for request, part in zip(requests, parts, strict=True):
            described = backend.description.levels[level]
            request.future.set_result(Prediction(part, described, (now - request.arrived) * 1e3))

    # With the lock.

    def _ages(self, now: float) -> list[float]:
        return [(now - request.arrived) * 1e3 for request in self._waiting]

    def _hold(self, now: float) -> float:
        """Seconds for which the requests that wait are kept for others to join them."""
        if self._begun or self._closed or len(self._waiting) >= self._sizes[-1]:
            return 0.0
        return (self._waiting[0].arrived if self._waiting else now) + self.max_wait_ms / 1e3 - now

    def _busy_ms(self, now: float) -> float:
        return max(0.0, (self._busy_until - now) * 1e3, self._hold(now) * 1e3)

    def _measured(self) -> Table:
        levels = self.runner.backend.description.levels
        return Table.of([{size: self.runner.predicted(one.index, size) for size in self._sizes} for one in levels])


def _sizes(runner: AnytimeRunner, most: int) -> tuple[int, ...]:
    """Batch sizes that are measured: powers of two, and the largest."""
    backend = runner.backend
    if smallest_batch(backend) > 1 or any(not one.sizes for one in backend.inputs):
        raise ArgumentError(
            "a request is one sample, and this model takes no batch of one sample: export it with a dynamic batch"
        )
    batch = backend.description.batch
    largest = min(most, 1 if batch is None else batch[1] or most)
    return tuple(sorted({largest, *(2**power for power in range(largest.bit_length()) if 2**power < largest)}))


def _part(value: Any, place: int, count: int) -> Any:
    """What belongs to one sample of a batch."""
    if isinstance(value, dict):
        return {name: _part(one, place, count) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_part(one, place, count) for one in value))
    if isinstance(value, list | tuple):
        return type(value)(_part(one, place, count) for one in value)
    if not hasattr(value, "shape"):
        return value
    if not value.shape or value.shape[0] != count:
        raise ArgumentError(
            f"a result has the shape {list(value.shape)} for {count} samples: it cannot be divided among them"
        )
    return value[place]
