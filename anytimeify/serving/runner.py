"""`AnytimeRunner`: levels that are chosen call by call, by name or by the time that is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from anytimeify.early_exit.document import MANIFEST
from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.level_names import LevelName, find_level
from anytimeify.serving.backend import SAVED, Backend, Input, check
from anytimeify.serving.description import ServedLevel
from anytimeify.serving.latencies import Latencies, Latency
from anytimeify.serving.onnx_levels import OnnxLevels
from anytimeify.serving.onnx_stages import OnnxStages

__all__ = [
    "AnytimeRunner",
    "MeasuredLevel",
    "Prediction",
    "is_onnx",
    "made_up",
    "open_levels",
    "smallest_batch",
]

_WARM_UP = 5  # runs of each level, after one that is not counted


class Prediction(NamedTuple):
    """What a level computed, and the milliseconds from the call, or from `submit`, until it was there."""

    value: Any
    level: ServedLevel
    elapsed_ms: float


@dataclass(frozen=True)
class MeasuredLevel(ServedLevel):
    """A level, with what it takes by batch size."""

    latencies: Mapping[int, Latency]


class AnytimeRunner:
    """Runs the levels of an anytime model, whichever is named or fits the time. Needs no backbone.

        runner = AnytimeRunner("net.onnx")
        value, level, elapsed_ms = runner.predict(images, deadline_ms=20)

    Several threads may call it. After a fork it works in the child too; runs there count for the child alone.
    """

    def __init__(
        self,
        source: Any,
        backend: Literal["onnxruntime", "torch"] | None = None,
        device: str = "cpu",
        threads: int | None = None,
        *,
        warm_up: bool = True,
        trust_pickle: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Parameters
            source: an ONNX file or a folder of stages that `net.export` wrote, which need no torch; a PT2 archive that
                it wrote; what `net.save` wrote, or the folder with it; an `AnytimeModel` in eval mode, which is run as
                it is then.
            backend: what runs it: `"onnxruntime"` for ONNX files and stages, `"torch"` for all else: the default.
            device: `"cpu"`, `"cuda"`, `"cuda:1"`.
            threads: that one run uses; for torch this is a setting of the whole process.
            warm_up: run each level a few times, on made-up inputs of one sample, so that the first deadline is kept.
            trust_pickle: let torch read a PT2 archive with parts that could run code.
            clock: gives seconds.

        Raises `ArtifactError` for a file that is none of these, `ArgumentError` for another backend or device,
        `MissingExtraError` where onnxruntime is missing."""
        self._backend = open_levels(source, backend, device, threads, trust_pickle)
        self._clock, self._process = clock, os.getpid()
        self._runs, self._steps = Latencies(), Latencies()
        if warm_up:
            self.warm_up()

    @property
    def levels(self) -> tuple[MeasuredLevel, ...]:
        """The levels, the cheapest first, with their latencies as they are now. They are numbered as in the file: from
        0 on, without those for training only."""
        return tuple(
            MeasuredLevel(level.index, level.name, level.number, level.macs, self._runs.summary(level.index))
            for level in self.backend.description.levels
        )

    @property
    def backend(self) -> Backend:
        """What runs the levels, in this process."""
        if os.getpid() != self._process:
            self._backend, self._process = self._backend.reopened(), os.getpid()
            self._runs.unlock()
            self._steps.unlock()
        return self._backend

    def predict(self, *inputs: Any, deadline_ms: float | None = None, level: LevelName | None = None) -> Prediction:
        """One level's prediction: of the `level` that is named (its index, its name, its number as a float), or of the
        best whose predicted latency fits what is left of `deadline_ms` since the call, the cheapest where none does, or
        of the full level.

        `inputs` are the tensors that the backbone takes, one after the other, with a batch: arrays, or tensors of
        torch. An ONNX file gives arrays, and tensors to whoever gave some; where the model returns several, a
        dictionary of them.

        Raises `ArgumentError` for another number of inputs and for what names no level, `ArgumentValueError` for other
        shapes and types, `BudgetError` where there is no such level."""
        start = self._clock()
        backend, levels = self.backend, self._backend.description.levels
        if level is not None and deadline_ms is not None:
            raise ArgumentError("level names the level outright: leave out deadline_ms")
        deadline = _milliseconds(deadline_ms)
        taken, batch = self.take(inputs)
        if level is not None:
            chosen = find_level(levels, level)
        elif deadline is not None:
            chosen = self._fitting(batch, deadline - self._since(start))
        else:
            chosen = len(levels) - 1
        value = backend.given(self.run(chosen, taken, batch), inputs)
        return Prediction(value, levels[chosen], self._since(start))

    def stream(self, *inputs: Any, deadline_ms: float | None = None) -> Iterator[Prediction]:
        """Predictions of better and better levels, each when it is there, until the next would miss the deadline; the
        cheapest in any case. Stop whenever time is up: what was not asked for is not computed.

        Of a model that is `resumable`, each step computes only what those before it did not. Raises as `predict`
        does."""
        start = self._clock()
        deadline = _milliseconds(deadline_ms)
        taken, batch = self.take(inputs)
        return self._stream(inputs, taken, batch, start, deadline)

    def warm_up(self, batches: Sequence[int] | None = None) -> None:
        """Runs every level a few times at each of these batch sizes, on made-up inputs: by default at one sample, or
        the smallest batch that there is."""
        backend = self.backend
        for batch in batches if batches is not None else [smallest_batch(backend)]:
            taken = [backend.taken(made_up(input, batch), input) for input in backend.inputs]
            for level in backend.description.levels:
                backend.run(level.index, taken)
                for _ in range(_WARM_UP):
                    self.run(level.index, taken, batch)
            if backend.resumable:
                for _ in range(_WARM_UP + 1):
                    for _ in self._stream(taken, taken, batch, self._clock(), None):
                        pass

    def take(self, inputs: Sequence[Any]) -> tuple[list[Any], int]:
        """Inputs as the levels take them, and the size of their batch. Raises as `predict` does."""
        backend = self.backend
        expected = [*backend.inputs, *[Input("", "float32", ())] * (len(inputs) - len(backend.inputs))]
        taken = [backend.taken(value, input) for value, input in zip(inputs, expected, strict=False)]
        return taken, check(backend.inputs, taken, backend.description.batch)

    def run(self, level: int, taken: Sequence[Any], batch: int) -> Any:
        """The result of a level, whose latency counts from now on."""
        begin = self._clock()
        value = self.backend.run(level, taken)
        self._runs.add(level, batch, self._since(begin))
        return value

    def predicted(self, level: int, batch: int) -> float:
        """Milliseconds that a level is going to take; 0 where it has not run yet."""
        return self._runs.predicted(level, batch)

    def _stream(
        self, asked: Sequence[Any], taken: Sequence[Any], batch: int, start: float, deadline: float | None
    ) -> Iterator[Prediction]:
        backend = self.backend
        known = self._steps if backend.resumable else self._runs
        steps = backend.stream(taken)
        for level in backend.description.levels:
            late = deadline is not None and known.predicted(level.index, batch) > deadline - self._since(start)
            if level.index and late:
                return
            begin = self._clock()
            value = next(steps)
            known.add(level.index, batch, self._since(begin))
            yield Prediction(backend.given(value, asked), level, self._since(start))

    def _fitting(self, batch: int, left: float) -> int:
        levels = self.backend.description.levels
        return next((one.index for one in reversed(levels) if self.predicted(one.index, batch) <= left), 0)

    def _since(self, start: float) -> float:
        return (self._clock() - start) * 1e3


def open_levels(source: Any, backend: str | None, device: str, threads: int | None, trust_pickle: bool) -> Backend:
    """What runs the levels of a source; one that does already, as it is."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ArgumentError(f"threads={threads!r}: expected a whole number from 1 on, or None")
    is_path = isinstance(source, str | os.PathLike)
    if backend is None:
        backend = "onnxruntime" if is_path and is_onnx(source) else "torch"
    if backend not in ("onnxruntime", "torch"):
        raise ArgumentError(f"backend={backend!r}: expected onnxruntime or torch")
    if not is_path and not hasattr(source, "call_signature"):
        if hasattr(source, "description"):
            return source  # type: ignore[no-any-return]  # it says what it runs
        raise ArgumentError(f"a {type(source).__name__} is given: expected a path, or an AnytimeModel")
    if backend == "onnxruntime":
        if not is_path:
            raise ArgumentError("a model is run by backend='torch'; write an ONNX file with net.export for onnxruntime")
        if _is_torch(Path(source)):
            raise ArgumentError(f"{source} is run by backend='torch', not by onnxruntime: write an ONNX file of it")
        kind = OnnxStages if Path(source).is_dir() else OnnxLevels
        return kind.of(source, device, threads)
    import torch

    from anytimeify.serving.torch_levels import torch_levels

    if threads is not None:
        torch.set_num_threads(threads)
    return torch_levels(source, device, trust_pickle)


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an ONNX file or of a folder of stages."""
    return os.fspath(path).endswith(".onnx") or (Path(path) / MANIFEST).is_file()


def _is_torch(path: Path) -> bool:
    """Whether a path is that of what only torch reads."""
    if path.is_dir():
        return (path / SAVED).is_file() and not (path / MANIFEST).is_file()
    return path.suffix in (".pt2", ".safetensors")


def smallest_batch(backend: Backend) -> int:
    """The smallest batch that the levels take."""
    batch = backend.description.batch
    return batch[0] if batch is not None else next((one.sizes[0] or 1 for one in backend.inputs if one.sizes), 1)


def made_up(input: Input, batch: int) -> Any:
    """Values of an input: noise, or zeros where it takes whole numbers; one of what may be any, but for the batch.
    `ArgumentValueError` where that is more than memory holds."""
    first, *rest = input.sizes or (1,)
    shape = (batch if first is None else first, *(size or 1 for size in rest)) if input.sizes else ()
    try:
        noise = np.random.default_rng(0).standard_normal(shape)
    except (MemoryError, ValueError) as error:
        raise ArgumentValueError(f"input '{input.name}' of the shape {list(shape)} is too large to try") from error
    if input.dtype in ("float16", "float32", "float64"):
        return noise.astype(input.dtype)
    if "float" in input.dtype:  # of torch alone
        return noise.tolist()
    return np.zeros(shape, input.dtype)


def _milliseconds(deadline: Any) -> float | None:
    if deadline is None:
        return None
    if isinstance(deadline, bool) or not isinstance(deadline, int | float) or deadline != deadline:
        raise ArgumentError(f"deadline_ms={deadline!r}: expected a number of milliseconds")
    return float(deadline)
