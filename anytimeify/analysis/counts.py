"""Numbers in a graph that were made of a channel count: `x * dim**0.5`, `x.sum(1) / x.shape[1]`, `q @ k / sqrt(d)`.

An exported graph holds the number and not how it was made. It counts an axis if it multiplies or divides, is `c`,
`1 / c`, `sqrt(c)` or `1 / sqrt(c)` of the axis' size, and meets the axis in the same expression:

1. behind something that adds up over it (a sum, a norm, a product of matrices), element-wise operations between;
2. or on a tensor that has it: then square roots alone, and of 64 or more where they are whole, for 2 and 16 are
   numbers that people write.

What adds up decides before what is there. Small powers of two count behind sums alone, not behind layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.ir import Program, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.rules import Kind, has_kind
from anytimeify.rules.factors import leaves
from anytimeify.rules.multiples import numbers_in
from anytimeify.rules.op import flat_nodes

__all__ = ["Count", "counts"]

Place = tuple[fx.Node, int]
"""A dimension of what a node gives."""

_POWERS = (1.0, -1.0, 0.5, -0.5)
_COMMON = {2.0**power for power in range(-2, 3)}
_PRECISION = 1e-6  # of a number that was computed in single precision
_PASSING: tuple[Kind, ...] = ("pointwise", "cast", "reshape", "expansion", "dropout")
_STEPS = 8  # of element-wise operations between a sum and the number


@dataclass(frozen=True)
class Count:
    """A number of a call, the power of a size that it is, and dimensions whose sizes multiply to that size.

    `alike`: whether all axes that it may stand for narrow alike; where they do not, it is not known which it counts."""

    node: fx.Node
    argument: str
    value: float
    power: float
    size: int
    places: tuple[Place, ...]
    alike: bool

    def __str__(self) -> str:
        if self.power == 1:
            return str(self.size)
        written = f"sqrt({self.size})" if abs(self.power) == 0.5 else str(self.size)
        return f"{self.value:.7g} = {written if self.power > 0 else f'1/{written}'}"


def counts(program: Program, axes: Axes, kept: Sequence[Widths]) -> Iterator[Count]:
    """The numbers of a program that count an axis which some of the widths in `kept` narrow."""
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(type_of(node), TensorType):
            continue
        for argument, value in numbers_in(node):
            for group in (_added_up(node, axes), _there(node, axes)):
                found = [(power, places) for power, places in group if _is_power(value, power, axes, places)]
                if not found:
                    continue
                sizes = {places: _sizes(axes, places, kept) for _, places in found}
                narrowed = [(power, places) for power, places in found if len(set(sizes[places])) > 1]
                if narrowed:
                    power, places = narrowed[0]
                    alike = len(set(sizes.values())) == 1
                    yield Count(node, argument, value, power, sizes[places][0], places, alike)
                break


def _is_power(value: float, power: float, axes: Axes, places: tuple[Place, ...]) -> bool:
    (size,) = _sizes(axes, places, [])
    return size > 1 and math.isclose(value, size**power, rel_tol=_PRECISION)


def _sizes(axes: Axes, places: tuple[Place, ...], kept: Sequence[Widths]) -> tuple[int, ...]:
    """The size at full width, and at every other; zero where one is not known."""

    def at(widths: Widths) -> int:
        sizes = [axes.size(axes.dims[node][dim], widths) for node, dim in places]
        return math.prod(size.coefficient for size in sizes) if all(size.static for size in sizes) else 0

    return tuple(at(widths) for widths in ({}, *kept))


def _added_up(node: fx.Node, axes: Axes) -> Iterator[tuple[float, tuple[Place, ...]]]:
    """What is added up on the way to a call: every dimension, and all dimensions of one operand together."""
    for source in _sources(node, axes):
        operands = [one for one in flat_nodes(bound(source).values()) if isinstance(type_of(one), TensorType)]
        for operand in operands:
            gone = [
                (operand, dim)
                for dim, expr in enumerate(axes.dims[operand])
                if (own := set(leaves(expr))) and own <= axes.mixed[source]
            ]
            several = [tuple(gone)] if len(gone) > 1 else []
            for places in (*several, *((one,) for one in gone)):
                (size,) = _sizes(axes, places, [])
                for power in _POWERS:
                    if size > 1 and (size**power not in _COMMON or has_kind(source, "reduction")):
                        yield power, places


def _there(node: fx.Node, axes: Axes) -> Iterator[tuple[float, tuple[Place, ...]]]:
    """The dimensions of what a call multiplies or divides."""
    for operand in node.all_input_nodes:
        for dim in range(len(axes.dims[operand]) if isinstance(type_of(operand), TensorType) else 0):
            (size,) = _sizes(axes, ((operand, dim),), [])
            if math.isqrt(size) ** 2 != size or size >= 64:
                yield from ((power, ((operand, dim),)) for power in (0.5, -0.5))


def _sources(node: fx.Node, axes: Axes) -> Iterator[fx.Node]:
    """What adds up, in a call or in what it reads through operations that do not."""
    seen, waiting = {node}, [(node, 0)]
    while waiting:
        reader, steps = waiting.pop()
        if axes.mixed.get(reader):
            yield reader
        elif reader.op == "call_function" and steps < _STEPS and (reader is node or has_kind(reader, *_PASSING)):
            waiting += [(source, steps + 1) for source in reader.all_input_nodes if source not in seen]
            seen.update(reader.all_input_nodes)
