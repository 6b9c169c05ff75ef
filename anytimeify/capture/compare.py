"""Whether a captured program computes what its source computes, on the example inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from anytimeify._torch import TreeSpec, flatten, unflatten
from anytimeify.capture.custom_derivatives import direct_checkpoints
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.modes import attributes_kept, in_mode
from anytimeify.capture.outputs import choose
from anytimeify.capture.same_draws import SameDraws, same_draws
from anytimeify.capture.traced import Numbering
from anytimeify.codegen.interpret import interpret
from anytimeify.codegen.to_modules import to_modules
from anytimeify.errors import CaptureError
from anytimeify.ir import Captured, Program
from anytimeify.rules.training import draws, trains

__all__ = [
    "Expected",
    "Gap",
    "buffers_kept",
    "difference",
    "drawing",
    "expected_from_exported",
    "expected_from_module",
    "fits",
    "gaps",
    "plain_attributes",
    "randomness",
    "results_of_program",
    "seeded",
    "tolerance",
    "traced_from_module",
    "with_other_values",
]


@dataclass(frozen=True)
class Expected:
    """What the source returns for the example inputs: the structure, its leaves, and the prediction among them.

    Tensors have values, unless nothing was computed: then each leaf has its number."""

    position: int  # of the prediction
    spec: TreeSpec
    leaves: Sequence[Any]
    traced: Traced | None = None

    @cached_property
    def computed(self) -> Expected:
        """The same with values."""
        return self if self.traced is None else self.traced.compute()

    @property
    def prediction(self) -> Tensor:
        found: Tensor = self.leaves[self.position]
        return found

    def compared(self, captured: Captured, leaves: Sequence[Any] | None = None) -> list[Any]:
        """The tensors that a program is compared by, all of them or the prediction alone; or what stands for them among
        other `leaves`."""
        leaves = self.leaves if leaves is None else leaves
        if captured.results is None:
            return [leaves[self.position]]
        places = captured.results.evaluation.leaves
        first = dict(zip(reversed(places), reversed(leaves), strict=True))
        return [first[output] for output in captured.results.evaluation.outputs]

    def shown_by(self, captured: Captured) -> bool:
        """Whether the program computes the same in eval mode, whatever the values are."""
        if self.traced is None:
            return False
        inputs = captured.example_inputs
        try:
            _, found = self.traced.numbering.of(lambda: interpret(captured.program, inputs))
        except Exception:  # it takes values to tell
            return False
        return [found[output] for output in _compared(captured)] == self.compared(captured, self.traced.numbers)

    @staticmethod
    def of(result: Any, output: int | str | None) -> Expected:
        leaves, spec = flatten(result)
        tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        foreign = next((leaf for leaf in leaves if dataclasses.is_dataclass(leaf)), None)
        if foreign is not None and not any(tensors):
            name = type(foreign).__qualname__
            raise CaptureError(
                f"The model returns a {name}, a dataclass whose tensors torch cannot see. "
                f"Call torch.export.register_dataclass({name}) once, before the model is transformed."
            )
        position = choose(unflatten(list(range(len(leaves))), spec), tensors, output)
        return Expected(position, spec, leaves)


@dataclass(frozen=True)
class Traced:
    """What a result is known by if nothing was computed."""

    numbering: Numbering
    numbers: Sequence[Any]  # of the leaves
    compute: Callable[[], Expected]


def traced_from_module(model: nn.Module, inputs: CallInputs, output: int | str | None) -> Expected:
    """As `expected_from_module`, without computing anything where that can be done."""
    numbering = Numbering([*model.parameters(), *model.buffers(), *inputs.tensors])
    try:
        with in_mode(model, training=False), buffers_kept(model), direct_checkpoints(), _quietly():
            result, numbers = numbering.of(lambda: model(*inputs.args, **inputs.kwargs))
        traced = Traced(numbering, numbers, lambda: expected_from_module(model, inputs, output))
        return replace(Expected.of(result, output), traced=traced)
    except Exception:  # a model that looks at values
        return expected_from_module(model, inputs, output)


def expected_from_module(model: nn.Module, inputs: CallInputs, output: int | str | None) -> Expected:
    """In eval mode; what the model writes to its buffers is put back. Raises whatever the model raises."""
    with in_mode(model, training=False), buffers_kept(model), direct_checkpoints(), _quietly(), SameDraws():
        return Expected.of(model(*inputs.args, **inputs.kwargs), output)


def expected_from_exported(exported: ExportedProgram, inputs: CallInputs, output: int | str | None) -> Expected:
    """In the mode that the program was exported in; its buffers are put back."""
    with _kept(exported.state_dict), _quietly(), SameDraws():
        return Expected.of(exported.module(check_guards=False)(*inputs.args, **inputs.kwargs), output)


def gaps(captured: Captured, expected: Expected) -> list[float]:
    """The difference of every output of the program, in eval mode, from the expected prediction."""
    with _quietly(), same_draws(captured.program):
        results = interpret(captured.program, captured.example_inputs)
    want = expected.computed.prediction
    return [difference(want, have) if have.dtype == want.dtype else float("inf") for have in results]


def results_of_program(captured: Captured, *, training: bool = False) -> list[Tensor]:
    """What the program returns in one mode, on the example inputs: every tensor once, or the prediction alone."""
    draws = same_draws(captured.program)
    if training:
        network = to_modules(captured.program)
        with in_mode(network, training=True), _kept(captured.program.tensors), _quietly(), draws:
            results = network(*captured.example_inputs)
    else:
        with _quietly(), draws:
            results = interpret(captured.program, captured.example_inputs)
    return [results[output] for output in _compared(captured, training=training)]


def _compared(captured: Captured, *, training: bool = False) -> Sequence[int]:
    return (0,) if captured.results is None else captured.results.of(training=training).outputs


class Gap(NamedTuple):
    """The largest difference between two sequences of tensors, and whether all differences may be rounding."""

    size: float
    is_rounding: bool

    @staticmethod
    def between(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Gap:
        differences = [
            (difference(want, have) if have.dtype == want.dtype else float("inf"), tolerance(want.dtype))
            for want, have in zip(expected, found, strict=True)
        ]
        return Gap(max(gap for gap, _ in differences), all(gap <= limit for gap, limit in differences))

    @staticmethod
    def of(captured: Captured, expected: Expected, *, training: bool = False) -> Gap:
        """Between what a program gives for the example inputs and what its source does."""
        if not training and expected.shown_by(captured):
            return Gap(0.0, True)
        return Gap.between(expected.computed.compared(captured), results_of_program(captured, training=training))


def with_other_values(captured: Captured, names: Iterable[str]) -> Captured:
    """With other values in the tensors of these names; the same ones at every call."""
    generator = torch.Generator()
    tensors = dict(captured.program.tensors)
    for seed, name in enumerate(names):
        generator.manual_seed(seed)
        own = tensors.get(name)
        if own is not None and own.is_floating_point():
            tensors[name] = own + torch.rand(own.shape, generator=generator, dtype=torch.float64).to(own)
    return replace(captured, program=replace(captured.program, tensors=tensors))


def fits(tensor: Tensor, place: Tensor, other: Tensor | None = None) -> bool:
    """Whether a tensor has the type of another whose sizes may be symbols; a symbol takes any size, and so does what
    has an `other` size for a batch of another size."""
    sizes: list[Any] = list(place.shape)  # an int, or a SymInt where the size is dynamic
    others = sizes if other is None else list(other.shape)
    if tensor.dtype != place.dtype or not tensor.dim() == len(sizes) == len(others):
        return False
    found = zip(sizes, others, tensor.shape, strict=True)
    return all(size == its for size, same, its in found if isinstance(size, int) and size == same)


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference that is rounding, relative to the largest element."""
    return max(1e-5, 8 * torch.finfo(dtype).eps) if dtype.is_floating_point or dtype.is_complex else 0.0


def difference(reference: Tensor, result: Tensor) -> float:
    """The largest difference relative to the largest magnitude of `reference`; infinite where shapes or what is not
    finite differ."""
    if reference.shape != result.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    expected, found = _wide(reference), _wide(result)
    finite = expected.isfinite()
    same = torch.where(finite, found.isfinite(), (expected == found) | (expected.isnan() & found.isnan()))
    if not bool(same.all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = float(expected[finite].abs().max())
    error = float((expected[finite] - found[finite]).abs().max())
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))


def _wide(tensor: Tensor) -> Tensor:
    """In double precision; complex numbers as pairs."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def randomness(program: Program) -> str | None:
    """The first node, in words, that draws random numbers in eval mode too: then no two runs agree."""
    for node in drawing(program):
        return f"'{node.target}' (node '{node.name}' of {node.meta.get('origin')}) draws random numbers"
    return None


def drawing(program: Program) -> list[fx.Node]:
    """What draws random numbers in eval mode too."""
    if not any(draws(node) and not trains(node) for node in program.graph.nodes):
        return []
    return [node for node in to_modules(program, training=False).graph.nodes if draws(node)]


@contextmanager
def seeded() -> Iterator[None]:
    """Every call starts from the same random state; the caller's is put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        if devices:
            torch.cuda.manual_seed_all(0)
        yield


@contextmanager
def _quietly() -> Iterator[None]:
    with torch.no_grad(), seeded():
        yield


def plain_attributes(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """What modules keep in Python, such as counters: the module, the name and the value of each."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if value is None or type(value) in (bool, int, float, str)
    ]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """A forward pass may write to its buffers or put others in their place, and count in attributes."""
    places = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        with attributes_kept(model), _kept({str(index): buffer for index, (_, _, buffer) in enumerate(places)}):
            yield
    finally:
        for module, name, buffer in places:
            module._buffers[name] = buffer


@contextmanager
def _kept(tensors: Mapping[str, Any]) -> Iterator[None]:
    """Norms in training write to their statistics: every buffer gets its value back."""
    buffers = {
        name: value.clone()
        for name, value in tensors.items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in buffers.items():
                tensors[name].copy_(value)
