"""What an extract takes where it will run: in torch or in onnxruntime, on a device, with so many threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from anytimeify.capture.inputs import CallInputs
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.errors import ArgumentError, BudgetError
from anytimeify.io import checksums
from anytimeify.ir import Captured
from anytimeify.ir.node_meta import type_of
from anytimeify.level_names import LevelName
from anytimeify.measure import cache
from anytimeify.measure.machine import processor
from anytimeify.measure.timing import Timing, timed
from anytimeify.serving.arrays import open_session, provider_of
from anytimeify.storage.export import quiet, require, traced
from anytimeify.storage.onnx_model import onnx_model, output_names, save_onnx

__all__ = [
    "Place",
    "Prepared",
    "Runtime",
    "call_of",
    "device_of",
    "example_batch",
    "measure",
    "prepare",
    "prepare_level",
    "torch_threads",
    "usable",
]

Runtime: TypeAlias = Literal["torch", "onnxruntime"]


@dataclass(frozen=True)
class Place:
    """Where a level runs. `threads`: of one run; None for what the runtime does by itself. `BudgetError` for what is no
    runtime, and no number of threads or samples."""

    device: torch.device
    runtime: Runtime = "torch"
    threads: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise BudgetError(f"batch_size={self.batch_size!r}: expected a whole number")
        if self.batch_size < 1:
            raise BudgetError(f"batch_size={self.batch_size}: expected 1 or more")
        if self.runtime not in get_args(Runtime):
            raise BudgetError(f"runtime={self.runtime!r}: expected {' or '.join(get_args(Runtime))}")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise BudgetError(f"threads={self.threads!r}: expected a whole number from 1 on, or None")


@dataclass(frozen=True)
class Prepared:
    """An extract that is going to run at a place: what its time depends on, and what makes the call."""

    key: cache.Key
    place: Place
    make: Callable[[], Callable[[], object]]


def prepare(extract: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> Prepared:
    """The extract, called with these arguments. Moves it to the device, unless it is exported."""
    key = {
        "graph": _graph(extract),
        "inputs": [_kind(value) for value in (*args, *kwargs.values())],
        "device": _device(place.device),
        **_runtime(place),
    }

    def make() -> Callable[[], object]:
        if place.runtime == "onnxruntime":
            return _session(extract, CallInputs(tuple(args), dict(kwargs)), place)
        return call_of(extract.to(place.device), args, kwargs, place.device)

    return Prepared(key, place, make)


def measure(prepared: Prepared, *, seconds: float = 1.0, cached: bool = True) -> Timing:
    """What a call takes: as it was measured before, on the disk, or measured now and kept there. `cached=False`
    measures now, and keeps nothing."""
    known = cache.read(prepared.key) if cached else None
    if known is not None:
        return known
    with torch_threads(prepared.place):
        (timing,) = timed([prepared.make()], seconds=seconds)
    if cached:
        cache.write(prepared.key, timing)
    return timing


class Extracts(Protocol):
    """What is read of an `AnytimeModel`, which imports this module."""

    @property
    def captured(self) -> Captured: ...
    @property
    def call_signature(self) -> CallSignature: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def extract(self, level: LevelName) -> nn.Module: ...


def prepare_level(net: Extracts, index: int, place: Place) -> Prepared:
    """The extract of a level, called with a batch of the example inputs."""
    captured = net.captured
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())
    where = torch.device("cpu") if place.runtime == "onnxruntime" else place.device
    inputs = example_batch(captured, place.batch_size)
    moved = tuple(x.to(where, dtype) if x.is_floating_point() else x.to(where) for x in inputs)
    args, kwargs = net.call_signature.arguments(moved, captured.signature)
    return prepare(net.extract(index), args, kwargs, place)


@contextmanager
def torch_threads(place: Place) -> Iterator[None]:
    """Within it, torch uses the threads of a place."""
    before = torch.get_num_threads()
    if place.runtime != "torch" or place.threads in (None, before):
        yield
        return
    torch.set_num_threads(place.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call_of(
    module: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> Callable[[], object]:
    """A call of torch that is over when its result is there."""

    def run() -> object:
        with torch.inference_mode():
            result = module(*args, **kwargs)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        return result

    return run


def _session(extract: nn.Module, inputs: CallInputs, place: Place) -> Callable[[], object]:
    """A call of onnxruntime, of the file that the extract becomes."""
    require("onnx")
    provider = provider_of(str(place.device))
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder, "level.onnx")
        _, program = traced(extract.cpu(), inputs, dynamic_batch=False)
        save_onnx(onnx_model(program, file.name, outputs=output_names(program)), file)
        session = open_session(file, provider, place.threads)
    names = [entry.name for entry in session.get_inputs()]
    given = dict(zip(names, [tensor.numpy() for tensor in inputs.tensors], strict=True))
    return lambda: session.run(None, given)


def _graph(extract: nn.Module) -> str:
    """A hash of what an extract computes and of the shapes of its tensors; their values take no time."""
    tensors = [[name, *_kind(tensor), list(tensor.stride())] for name, tensor in extract.state_dict().items()]
    return checksums.of_data([str(extract), tensors])


def _kind(value: Any) -> list[Any]:
    return [list(value.shape), str(value.dtype)] if isinstance(value, Tensor) else [repr(value)]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {processor()}"
    return processor() if device.type == "cpu" else f"{device.type}, {processor()}"


def _runtime(place: Place) -> dict[str, Any]:
    if place.runtime == "torch":
        kernels = torch.backends.cpu.get_cpu_capability()
        return {"runtime": f"torch {torch.__version__}, {kernels}", "threads": place.threads or torch.get_num_threads()}
    require("onnx")
    import onnxruntime

    return {"runtime": f"onnxruntime {onnxruntime.__version__}, {place.device.type}", "threads": place.threads}


def device_of(device: str | torch.device) -> torch.device:
    """A device by its name; `BudgetError` for what is none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BudgetError(f"device={str(device)!r}: {str(error).splitlines()[0]}") from error


def usable(device: torch.device, runtime: Runtime = "torch") -> torch.device:
    """The device; `BudgetError` where nothing can be computed on it: none is there, or it holds no data (`meta`)."""
    try:
        if runtime == "onnxruntime":
            provider_of(str(device))
        else:
            torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ArgumentError) as error:  # torch without CUDA asserts that there is some
        raise BudgetError(f"latency cannot be measured on {device}: {str(error).splitlines()[0]}") from error
    return device


def example_batch(captured: Captured, batch_size: int) -> tuple[Tensor, ...]:
    """The example inputs, flat, with another number of samples: samples repeat as often as needed.

    A model that was captured for one batch, or for some, can be run with those only; for the default of 1 the smallest
    of them is taken.
    """
    symbol = captured.batch
    if symbol is None:
        static = (
            captured.example_inputs[0].shape[0] if captured.example_inputs and captured.example_inputs[0].ndim else 1
        )
        if batch_size not in (1, static):
            raise BudgetError(f"batch_size={batch_size}: the backbone was captured with a static batch of {static}")
        return captured.example_inputs
    least, most = captured.batch_range
    batch_size = least if batch_size == 1 else batch_size
    if batch_size < least or (most is not None and batch_size > most):
        raise BudgetError(f"batch_size={batch_size}: the graph holds for batches of {captured.batches}")
    resized = []
    for node, tensor in zip(captured.program.placeholders, captured.example_inputs, strict=True):
        for dim, size in enumerate(type_of(node).shape):
            if symbol in size.symbols:
                wanted = size.coefficient * batch_size ** size.symbols.count(symbol)
                tensor = tensor.index_select(dim, torch.arange(wanted, device=tensor.device) % tensor.shape[dim])
        resized.append(tensor)
    return tuple(resized)
