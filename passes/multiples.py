"""Which multiple the channel counts of levels are rounded to, by measuring layers where the backbone is.

Half of the channels is not half of the time where the device computes vectors or tiles of so many channels: 72 channels
may take as long as 80, or longer. The largest layers of every level are run at the counts that each multiple gives;
the smallest multiple that is as fast as the fastest is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.cost import sizes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Size, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.kernels.clock import seconds
from anytimeify.passes.rewrites.narrow import clone_narrowed
from anytimeify.rules import traits

__all__ = ["Multiple", "measured_multiple"]

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
LAYERS = 6  # of every level, those with the most multiply-accumulates
ROUNDS = 5  # the quickest counts
AT_LEAST = 1e-3  # seconds that are timed at once
PATIENCE = 10.0  # seconds
AS_FAST = 1.03

LevelWidths: TypeAlias = Sequence[Widths]
Call: TypeAlias = "tuple[Any, tuple[Any, ...], tuple[tuple[str, Any], ...]]"
"""An operation with the shapes of its tensors in place of these."""


@dataclass(frozen=True)
class Multiple:
    """What was found: the multiple, and where and how, in words."""

    number: int
    measured: str


def measured_multiple(captured: Captured, axes: Axes, kept: Callable[[int], LevelWidths]) -> Multiple:
    """The smallest of the multiples whose levels take least time.

    `kept`: the widths of the levels for a multiple, the full one last; it raises `SchemeError` where two of them are
    equal, and such a multiple is left out. Layers run in the type of the weights, on a GPU in bfloat16 where that is
    float32, which is what matrix units are for. Raises `SchemeError` where no multiple fits.
    """
    tensor = next(one for one in captured.program.tensors.values() if one.is_floating_point())
    device, dtype = tensor.device, tensor.dtype
    if device.type == "cuda" and dtype is torch.float32:
        dtype = torch.bfloat16
    layers = _largest(captured)
    calls = {number: list(_calls(captured, axes, widths, layers)) for number, widths in _distinct(kept)}
    spent = _measured(set().union(*calls.values()), device, dtype)
    totals = {number: sum(spent[call] for call in found) for number, found in calls.items()}
    best = min(totals.values())
    number = next(one for one in sorted(totals) if totals[one] <= AS_FAST * best)
    compared = ", ".join(f"{one}: {total / best:.2f}" for one, total in sorted(totals.items()))
    return Multiple(
        number, f"measured in {_short(dtype)} on {device.type}; time of each, the least being 1: {compared}"
    )


def _distinct(kept: Callable[[int], LevelWidths]) -> Iterator[tuple[int, LevelWidths]]:
    """Multiples that give different widths, the smallest of equal ones."""
    seen: list[LevelWidths] = []
    refused: SchemeError | None = None
    for number in CANDIDATES:
        try:
            widths = list(kept(number))
        except SchemeError as error:
            refused = refused or error
            continue
        if widths not in seen:
            seen.append(widths)
            yield number, widths
    if not seen:
        assert refused is not None
        raise refused


def _largest(captured: Captured) -> list[fx.Node]:
    """The layers with the most multiply-accumulates, of those of the same shapes one."""
    found: dict[Any, tuple[int, fx.Node]] = {}
    numbers = _numbers(captured)
    for node in captured.program.graph.nodes:
        count = traits(node).macs
        if count is None or traits(node).kind not in ("layer", "attention") or not _reads_floats(node):
            continue
        shapes = tuple(type_of(one).shape for one in node.all_input_nodes)
        macs, first = found.get((node.target, shapes), (0, node))
        found[node.target, shapes] = macs + numbers(count(node)), first
    return [node for _, node in sorted(found.values(), key=lambda one: -one[0])[:LAYERS]]


def _reads_floats(node: fx.Node) -> bool:
    kinds = [type_of(one) for one in node.all_input_nodes]
    return all(isinstance(kind, TensorType) and kind.dtype.is_floating_point for kind in kinds)


def _numbers(captured: Captured) -> Callable[[Size], int]:
    """Sizes as numbers, dynamic ones as in the example."""
    _, symbols = sizes(captured)

    def number(size: Size) -> int:
        total = size.coefficient
        for symbol in size.symbols:
            total *= symbols.get(symbol, 1)
        return total

    return number


def _calls(captured: Captured, axes: Axes, widths: LevelWidths, layers: Iterable[fx.Node]) -> Iterator[Call]:
    """The calls of the layers at every level but the full one, which is the same for all multiples."""
    program: Program = captured.program
    number = _numbers(captured)

    def shape(node: fx.Node) -> Any:
        return _Shape(tuple(number(size) for size in type_of(node).shape))

    builder = Builder.copying(program)
    for level, level_widths in enumerate(widths[:-1]):
        copies = clone_narrowed(builder, program, axes, level_widths, prefix=f"level{level}_")
        for node in layers:
            copy = copies[node]
            arguments: Any = fx.map_arg(copy.args, shape)
            named: Any = fx.map_arg(copy.kwargs, shape)
            yield copy.target, _hashable(arguments), tuple((name, _hashable(value)) for name, value in named.items())


@dataclass(frozen=True)
class _Shape:
    sizes: tuple[int, ...]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _measured(calls: Iterable[Call], device: torch.device, dtype: torch.dtype) -> Mapping[Call, float]:
    """Seconds of each call, the quickest of several rounds, so that what else the machine does falls on all of them."""
    runs = {call: _run(call, device, dtype) for call in calls}
    spent = {}
    end = time.monotonic() + PATIENCE
    with torch.no_grad():
        for call, run in runs.items():
            run()
            spent[call] = seconds(run, device)
        times = {call: max(1, round(AT_LEAST / max(one, 1e-9))) for call, one in spent.items()}
        for done in range(ROUNDS):
            if done and time.monotonic() > end:
                break
            for call, run in runs.items():
                spent[call] = min(spent[call], seconds(_repeated(run, times[call]), device) / times[call])
    return spent


def _repeated(run: Callable[[], object], times: int) -> Callable[[], object]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


def _run(call: Call, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    target, arguments, named = call

    def given(value: Any) -> Any:
        if isinstance(value, _Shape):
            return torch.ones(value.sizes, dtype=dtype, device=device)
        return [given(one) for one in value] if isinstance(value, tuple) else value

    values, options = [given(one) for one in arguments], {name: given(value) for name, value in named}
    return lambda: target(*values, **options)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
