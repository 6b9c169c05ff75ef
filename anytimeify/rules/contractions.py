"""Which operand of a layer is its weight, and which dimensions meet: read off its factor notation.

    ... i, o i, o -> ... o

The factor `i` is contracted: two operands have it, and the result does not. Either operand may be the weight; which one
is depends on what the network holds as parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import fx

from anytimeify.ir import Size, TensorType
from anytimeify.rules.notation import Dots, Notation, Pattern, Term, names
from anytimeify.rules.op import solve

__all__ = ["Contraction", "contractions_in"]


@dataclass(frozen=True)
class Contraction:
    """`result[rows] = weight[rows, columns] @ input[columns] + bias[rows]`, of the operands of one call.

    `columns`, `rows`, `read` and `given` are dimensions, counted from the front. `rows` and `given` are None where the
    weight has no dimension of its own in the result (a product with a vector). With `groups`, rows and columns fall
    into so many parts, and each part of the rows meets its own part of the columns. Where the operands meet along
    several dimensions, or the weight meets further operands, `others` are the dimensions of the weight that are
    contracted besides. `kernel` are those that nothing else has: the offsets of a convolution.
    """

    weight: fx.Node
    columns: int
    rows: int | None
    input: fx.Node
    read: int
    given: int | None
    bias: fx.Node | None = None
    bias_rows: int | None = None
    groups: int = 1
    others: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()


def contractions_in(notation: Notation, operands: Sequence[fx.Node], result: TensorType) -> Iterator[Contraction]:
    """Every way to see a call as a layer: each operand that may be the weight, with each that it may meet, and each
    dimension along which it does."""
    shapes = [operand.meta["type"].shape for operand in operands]
    for way in _ways(notation, tuple(map(len, shapes)), len(result.shape)):
        sizes = solve(notation, shapes, result.shape) if way.outer else {}
        yield Contraction(
            operands[way.weight],
            way.columns,
            way.rows,
            operands[way.input],
            way.read,
            way.given,
            None if way.bias is None else operands[way.bias],
            way.bias_rows,
            math.prod((sizes[name] for name in way.outer), start=Size(1)).coefficient,
            way.others,
            way.kernel,
        )


class _Way(NamedTuple):
    """A `Contraction` of a notation, operands by their places."""

    weight: int
    columns: int
    rows: int | None
    input: int
    read: int
    given: int | None
    bias: int | None
    bias_rows: int | None
    outer: frozenset[str]  # the factors whose sizes are the number of groups: g, in (g i)
    others: tuple[int, ...]
    kernel: tuple[int, ...]


@lru_cache(maxsize=1024)
def _ways(notation: Notation, ranks: tuple[int, ...], rank: int) -> tuple[_Way, ...]:
    """Every way for operands of so many dimensions, and a result of `rank`."""
    patterns = [_per_dimension(one, own) for one, own in zip(notation.operands, ranks, strict=False)]
    output = _per_dimension(notation.results[0], rank)
    found = []
    for weight, own in enumerate(patterns):
        for read, met in enumerate(patterns):
            for name in sorted(notation.contracted & _names(own) & _names(met)) if weight != read else ():
                columns, meets = _dims(own, {name}), _dims(met, {name})
                if len(columns) != 1 or len(meets) != 1:
                    continue
                outer = _names([met[meets[0]]]) - {name}
                written = _names(own) & _names(output) - _names(met) - outer
                rows, given = _dims(own, written), _dims(output, written)
                single = len(rows) == len(given) == 1
                way = _Way(
                    weight,
                    columns[0],
                    rows[0] if single else None,
                    read,
                    meets[0],
                    given[0] if single else None,
                    *_bias(patterns, {weight, read}, written | outer),
                    frozenset(outer),
                    tuple(dim for dim in _dims(own, notation.contracted) if dim != columns[0]),
                    tuple(_dims(own, notation.positions)),
                )
                found.append(way)
    return tuple(found)


def _bias(patterns: Sequence[Sequence[Term]], taken: Set[int], rows: Set[str]) -> tuple[int | None, int | None]:
    """The operand that has an element for every row, or one for all, and where it has the rows."""
    for place, pattern in enumerate(patterns):
        if place not in taken and (dims := _dims(pattern, rows)):
            return place, dims[0]
    return None, None


def _per_dimension(pattern: Pattern, rank: int) -> list[Term]:
    """One term for every dimension of an operand."""
    if Dots() not in pattern:
        return list(pattern)
    at = pattern.index(Dots())
    return [*pattern[:at], *[Dots()] * (rank - len(pattern) + 1), *pattern[at + 1 :]]


def _names(terms: Sequence[Term]) -> set[str]:
    return {one.name for one in names(tuple(terms))}


def _dims(terms: Sequence[Term], wanted: Set[str]) -> list[int]:
    return [dim for dim, term in enumerate(terms) if wanted & _names([term])]
