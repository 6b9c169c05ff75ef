"""What levels take in the form in which they are served, beside their extracts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.level_names import find_level
from anytimeify.measure import cache
from anytimeify.measure.machine import processor
from anytimeify.measure.timing import timed
from anytimeify.report.measured import Measured, MeasuredRow, judged
from anytimeify.report.pareto import check_scores
from anytimeify.runtime.latency import Place, Runtime, device_of, example_batch, prepare_level, torch_threads, usable
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.serving.arrays import Arrays
from anytimeify.serving.backend import SAVED, Backend, check
from anytimeify.serving.description import ServedLevel
from anytimeify.serving.runner import AnytimeRunner, is_onnx, made_up, open_levels, smallest_batch

__all__ = ["bench"]


def bench(
    source: Any,
    *,
    runtime: Runtime | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch_sizes: Sequence[int] = (1,),
    against: Any = None,
    accuracies: Mapping[str, float] | None = None,
    seconds: float = 1.0,
    cached: bool = True,
    trust_pickle: bool = False,
) -> Measured:
    """Measures every level, in turns with the same level alone.

    Parameters
        source: what `AnytimeRunner` takes, or one. A model, saved or not, is exported first where the `runtime` is
            onnxruntime.
        runtime: by default the one that `AnytimeRunner` would use.
        threads: of one run; None for the runtime's own choice.
        against: a model, or a file or folder with a saved one, whose extracts the levels are compared with; by default
            the source, where that is a model. `False` for none.
        accuracies: from 0 to 1, by the names of levels (`accuracy(net, batches).scores()`).
        seconds: how long one level is measured.
        cached: keep what extracts take, for budgets (`anytimeify.measure.cache`). They are measured anew in any case.

    Raises as `AnytimeRunner` does, and `BudgetError` for a device that is not there and a batch that does not fit."""
    known = device_of(device)
    with ExitStack() as stack:
        model = _model(source)
        whole = model if against is None else None if against is False else _model(against)
        if against not in (None, False) and whole is None:
            raise ArgumentError(f"against={against!r}: expected a model, or a file or folder with a saved one")
        backend = _backend(source, model, runtime, device, threads, trust_pickle, stack)
        if whole is not None and whole is not model:
            _check_same(backend, whole, source)
        check_scores(accuracies, [level.name for level in backend.description.levels])
        kind: Runtime = "onnxruntime" if isinstance(backend, Arrays) else "torch"
        where = usable(known, kind)
        rows: list[MeasuredRow] = []
        for size in batch_sizes:
            place = Place(where, kind, threads, smallest_batch(backend) if size == 1 else size)
            inputs = _inputs(backend, whole if whole is not None else model, place.batch_size)
            rows += [
                _row(backend, level, inputs, whole, place, seconds, cached) for level in backend.description.levels
            ]
        return Measured(
            form=Path(source).name if isinstance(source, str | Path) else type(source).__name__,
            scheme=backend.description.scheme,
            runtime=f"{kind} {version(kind)}",
            device=torch.cuda.get_device_name(where) if where.type == "cuda" else processor(),
            threads=threads,
            rows=judged(rows, accuracies),
        )


def _model(source: Any) -> AnytimeModel | None:
    """The model that a source is, or that it holds; None for a file of levels and a runner."""
    if isinstance(source, AnytimeModel) or not isinstance(source, str | Path):
        return source if isinstance(source, AnytimeModel) else None
    path = Path(source)
    if path.suffix == ".pt2" or is_onnx(path):
        return None
    return load(path / SAVED if path.is_dir() else path).eval()


def _check_same(backend: Backend, whole: AnytimeModel, source: Any) -> None:
    """`ArgumentValueError` unless all levels that are served are levels of the model, and cost as much there."""
    known = {(level.name, level.cost.macs) for level in whole.levels}
    for level in backend.description.levels:
        if (level.name, level.macs) not in known:
            raise ArgumentValueError(
                f"against: level {level.index} ({level.name}, {level.macs:,} MACs) of {source} is no level of that "
                "model: expected the saved model that it was exported from"
            )


def _backend(
    source: Any,
    model: AnytimeModel | None,
    runtime: Runtime | None,
    device: str,
    threads: int | None,
    trust_pickle: bool,
    stack: ExitStack,
) -> Backend:
    if isinstance(source, AnytimeRunner):
        return source.backend
    if model is None:
        return open_levels(source, runtime, device, None if runtime == "torch" else threads, trust_pickle)
    if runtime == "onnxruntime":
        file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "net.onnx")
        model.export(file)
        return open_levels(file, runtime, device, threads, trust_pickle)
    return open_levels(model.to(device) if model is not source else model, runtime, device, None, trust_pickle)


def _row(
    backend: Backend,
    level: ServedLevel,
    inputs: Sequence[Any],
    whole: AnytimeModel | None,
    place: Place,
    seconds: float,
    cached: bool,
) -> MeasuredRow:
    calls: list[Callable[[], object]] = [lambda: backend.run(level.index, inputs)]
    prepared = None
    if whole is not None:
        prepared = prepare_level(whole, find_level(whole.levels, level.name), place)
        calls.append(prepared.make())
    with torch_threads(place):
        timings = timed(calls, seconds=seconds)
    if prepared is not None and cached:
        cache.write(prepared.key, timings[1])
    alone = timings[1] if prepared is not None else None
    return MeasuredRow(level.index, level.name, level.macs, place.batch_size, timings[0], alone)


def _inputs(backend: Backend, model: AnytimeModel | None, size: int) -> list[Any]:
    """The model's example inputs, or made-up ones. `ArgumentValueError` for a batch that the levels do not take."""
    values: Sequence[Any] = [made_up(input, size) for input in backend.inputs]
    if model is not None:
        examples = zip(example_batch(model.captured, size), backend.inputs, strict=True)
        values = [tensor.to(getattr(torch, input.dtype)) for tensor, input in examples]
    taken = [backend.taken(value, input) for value, input in zip(values, backend.inputs, strict=True)]
    check(backend.inputs, taken, backend.description.batch)
    return taken
