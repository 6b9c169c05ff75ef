"""`side_by_side`: two captured backbones as one program of two outputs, over the same inputs.

    y = linear(x, w)        ->      first = linear(x, first.w)
    y = linear(x, w)                second = linear(x, second.w)
                                    return first, second

Names of tensors and module paths get the prefix of their network.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import CaptureError
from anytimeify.ir import PAIR, Captured, Origin, Program, Reinitialised, Size, TensorType
from anytimeify.ir.node_meta import origin_of, type_of

__all__ = ["renamed", "side_by_side", "symbols_of"]


@rewrite("side by side")
def side_by_side(one: Captured, other: Captured) -> Captured:
    """Both networks in one program that returns both predictions. Tensors and module paths are `first.<name>` and
    `second.<name>`; it is called like the first network.

    `CaptureError` where the two do not take the same inputs.
    """
    _check_inputs(one, other)
    graph = fx.Graph()
    inputs = [copy_node(graph, node) for node in one.program.placeholders]
    symbols = symbols_of(one.program, other.program)
    copies: dict[str, dict[fx.Node, fx.Node]] = {}
    halves = dict(zip(PAIR, (one.program, other.program), strict=True))
    for kind in ("get_attr", "call_function"):
        for half, program in halves.items():
            values = copies.setdefault(half, dict(zip(program.placeholders, inputs, strict=True)))
            for node in program.graph.find_nodes(op=kind) if kind == "get_attr" else program.graph.nodes:
                if node.op == kind:
                    values[node] = _copy(graph, node, half, values, symbols if half == PAIR[1] else {})
    outputs = tuple(copies[half][program.outputs[0]] for half, program in halves.items())
    graph.output(outputs).meta = dict(one.program.graph.output_node().meta)
    tensors = {f"{half}.{name}": tensor for half, program in halves.items() for name, tensor in program.tensors.items()}
    transient = frozenset(f"{half}.{name}" for half, program in halves.items() for name in program.transient)
    return replace(
        one,
        program=Program(graph, tensors, transient),
        notes=tuple(f"{half}: {note}" for half, each in zip(PAIR, (one, other), strict=True) for note in each.notes),
        lost=tuple(f"{half}: {note}" for half, each in zip(PAIR, (one, other), strict=True) for note in each.lost),
        held=frozenset(
            f"{half}.{path}" if path else half
            for half, each in zip(PAIR, (one, other), strict=True)
            for path in each.held
        ),
        batch_range=_ranges(one.batch_range, other.batch_range),
        limit=one.limit if other.limit is None else other.limit,
        reference=None,
        reinitialised=_both(one.reinitialised, other.reinitialised),
    )


def _ranges(one: tuple[int, int | None], other: tuple[int, int | None]) -> tuple[int, int | None]:
    """The sizes of a batch that are in two ranges."""
    largest = [most for _, most in (one, other) if most is not None]
    return max(one[0], other[0]), min(largest, default=None)


def _check_inputs(one: Captured, other: Captured) -> None:
    kinds = [[(tuple(x.shape), x.dtype) for x in captured.example_inputs] for captured in (one, other)]
    if kinds[0] != kinds[1]:
        described = [", ".join(f"{list(shape)} of {dtype}" for shape, dtype in each) for each in kinds]
        raise CaptureError(
            f"two backbones in one model take the same inputs; these take {described[0]} and {described[1]}"
        )
    if (one.batch is None) != (other.batch is None):
        raise CaptureError("one of the two backbones fixes the batch size and the other does not")


def symbols_of(one: Program, other: Program) -> dict[str, str]:
    """What the dynamic sizes of the second network's inputs are called in the first."""
    return {
        theirs.symbols[0]: ours.symbols[0]
        for mine, yours in zip(one.placeholders, other.placeholders, strict=True)
        for ours, theirs in zip(type_of(mine).shape, type_of(yours).shape, strict=True)
        if len(ours.symbols) == 1 and len(theirs.symbols) == 1
    }


def _copy(
    graph: fx.Graph, node: fx.Node, half: str, values: Mapping[fx.Node, fx.Node], symbols: Mapping[str, str]
) -> fx.Node:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    target: Any = f"{half}.{node.target}" if node.op == "get_attr" else node.target
    copied = graph.create_node(node.op, target, args, kwargs, f"{half}_{node.name}")
    origin: Origin = origin_of(node)
    path = f"{half}.{origin.module_path}" if origin.module_path else half
    copied.meta = {
        **node.meta,
        "type": renamed(type_of(node), symbols),
        "origin": replace(origin, module_path=path),
    }
    return copied


def renamed(kind: Any, symbols: Mapping[str, str]) -> Any:
    """A type, or a tuple of types, in other symbols."""
    if isinstance(kind, Size):
        return Size(kind.coefficient, tuple(sorted(symbols.get(symbol, symbol) for symbol in kind.symbols)))
    if isinstance(kind, TensorType):
        return kind.with_shape(tuple(renamed(size, symbols) for size in kind.shape))
    return tuple(renamed(one, symbols) for one in kind) if isinstance(kind, tuple) else kind


def _both(one: Reinitialised | None, other: Reinitialised | None) -> Reinitialised | None:
    if one is None or other is None:
        return None

    def reinitialised(wanted: Container[str] | None) -> Mapping[str, Tensor]:
        return {
            f"{half}.{name}": tensor
            for half, draw in zip(PAIR, (one, other), strict=True)
            for name, tensor in draw(None if wanted is None else _Within(wanted, half)).items()
        }

    return reinitialised


@dataclass(frozen=True)
class _Within:
    """The names of one half."""

    names: Container[str]
    half: str

    def __contains__(self, name: object) -> bool:
        return f"{self.half}.{name}" in self.names
