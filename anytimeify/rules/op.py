"""What a rule sees of a node and what it gives back, and how a line of factor notation is applied to one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from torch import fx

from anytimeify.ir import Origin, Size, TensorType
from anytimeify.ir.schema import bound
from anytimeify.rules import factors
from anytimeify.rules.factors import ONE, Expr, Factor, Pin, PinKind, Where
from anytimeify.rules.notation import Compound, Concat, Dots, Name, Notation, Pattern, Single, Term

__all__ = ["Call", "Dims", "Op", "Resize", "apply", "flat_nodes", "name_of", "opaque_results", "solve"]

Dims: TypeAlias = tuple[Expr, ...]
"""One expression per dimension of a tensor."""


@dataclass
class Op:
    """One node, as a rule sees it."""

    node: fx.Node
    known: Mapping[fx.Node, Any]  # axes of every earlier node: Dims, or a tuple of them
    memo: dict[str, Any] = field(default_factory=dict)  # what `infer` leaves for `resize`
    mixed: list[Expr] = field(default_factory=list)  # what `mix` was told
    arguments: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.arguments = bound(self.node)

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def where(self) -> Where:
        return Where(self.node.name, name_of(self.node), self.node.meta.get("origin", Origin()), self.mixed)

    def axes(self, value: object) -> Dims:
        """The axes of an operand."""
        assert isinstance(value, fx.Node)
        result: Dims = self.known[value]
        return result

    def operands(self) -> list[fx.Node]:
        """All tensor operands, in the order of the schema."""
        return [node for node in flat_nodes(self.arguments.values()) if isinstance(node.meta["type"], TensorType)]

    def type(self, value: object = None) -> TensorType:
        """The type of an operand, or of the node itself."""
        node = self.node if value is None else value
        assert isinstance(node, fx.Node)
        result = node.meta["type"]
        assert isinstance(result, TensorType)
        return result

    def rank(self, value: object) -> int:
        return len(self.type(value).shape)

    def dim(self, name: str = "dim", of: object = None) -> int:
        """An argument that names a dimension, as a non-negative index."""
        return int(self[name]) % max(1, self.rank(self["self"] if of is None else of))

    def dims(self, name: str = "dim", of: object = None) -> tuple[int, ...]:
        """An argument that names dimensions; all of them where it is None or empty."""
        rank = self.rank(self["self"] if of is None else of)
        value = self[name]
        if value is None or value == []:
            return tuple(range(rank))
        return tuple(int(dim) % max(1, rank) for dim in ([value] if isinstance(value, int) else value))

    def unify(self, one: Expr, other: Expr) -> None:
        factors.unify(one, other, self.where)

    def pin(self, expr: Expr, reason: str, kind: PinKind = "fixed") -> None:
        factors.pin(expr, Pin(reason, self.where, kind))

    def mix(self, *exprs: Expr) -> None:
        """Say that an element of a result may depend on every element of these axes: they are contracted, reduced or
        normalised over. Along all other axes an element depends on its own element alone, so that leading channels
        never depend on later ones; notation says it of itself, functions have to."""
        self.mixed.extend(exprs)

    def pinned(self, size: Size, reason: str = "made by an operation", kind: PinKind = "constant") -> Expr:
        """A new axis that keeps its size."""
        return factors.opaque(size, Pin(reason, self.where, kind))

    def open(self, size: Size, *, free: bool = False) -> Expr:
        """A new axis that takes the size of whatever it meets; `free`: it may be narrowed even if it meets no
        parameter.
        """
        if size == Size(1):
            return ONE
        return Factor(size, free=free) if size.static else self.pinned(size, kind="batch")

    def give_up(self, reason: str) -> Dims:
        """Pin every axis of every operand; the results are opaque (one entry per result where there are several)."""
        for operand in self.operands():
            for expr in self.known[operand] if isinstance(self.known[operand], tuple) else ():
                self.pin(expr, reason)
        result: Dims = opaque_results(self.node, Pin(reason, self.where))
        return result


def opaque_results(node: fx.Node, reason: Pin) -> Any:
    """Dims of a node whose results keep all their sizes."""
    kind = node.meta["type"]
    if isinstance(kind, TensorType):
        return tuple(factors.opaque(size, reason) for size in kind.shape)
    if isinstance(kind, tuple):
        return tuple(
            tuple(factors.opaque(size, reason) for size in one.shape) if isinstance(one, TensorType) else ()
            for one in kind
        )
    return ()


def name_of(node: fx.Node) -> str:
    """What the operation of a node is called."""
    target = node.target
    return (
        str(target) if not callable(target) or hasattr(target, "_schema") else getattr(target, "__name__", str(target))
    )


def flat_nodes(values: Iterable[Any]) -> Iterable[fx.Node]:
    """Every node in arguments that may be nested."""
    for value in values:
        if isinstance(value, fx.Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from flat_nodes(value)


@dataclass
class Resize:
    """A node of a narrowed graph whose size arguments are about to be written.

    `types` gives the narrowed type of every node of the original graph, `size` the narrowed size of an expression.
    """

    node: fx.Node
    types: Mapping[fx.Node, Any]
    size: Callable[[Expr], Size]
    memo: Mapping[str, Any]
    scale: Callable[[Any, Size], Any]  # (size argument, new size) -> new argument
    arguments: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.arguments = bound(self.node)

    def shape_argument(self, original: Sequence[Any], old: Sequence[Size], new: Sequence[Size]) -> list[Any]:
        """A list of sizes with the narrowed ones replaced; -1 and unchanged entries stay as they are."""
        return [
            value if before == after or (isinstance(value, int) and value == -1) else self.scale(value, after)
            for value, before, after in zip(original, old, new, strict=True)
        ]


@dataclass(frozen=True)
class Call:
    """A resized node that becomes a call of another operation."""

    target: Any
    arguments: dict[str, Any]


def spread(pattern: Pattern, rank: int) -> list[tuple[Term, int]]:
    """Pair every dimension with its term; the dimensions under `...` come as (Dots, distance from the last of them)."""
    if Dots() not in pattern:
        return [(term, 0) for term in pattern]
    at = pattern.index(Dots())
    width = rank - len(pattern) + 1
    middle: list[tuple[Term, int]] = [(Dots(), width - index) for index in range(width)]
    return [(term, 0) for term in pattern[:at]] + middle + [(term, 0) for term in pattern[at + 1 :]]


def apply(notation: Notation, op: Op, tensors: Sequence[fx.Node]) -> Any:
    """Dims of the results: operands matched against their patterns, shared factors unified, lonely ones pinned."""
    sizes = solve(notation, [op.type(node).shape for node in tensors], _result_shape(op.node))
    bindings: dict[str, Expr] = {}
    dots: dict[int, Expr] = {}
    for node, pattern in zip(tensors, notation.operands, strict=False):
        for expr, (term, distance) in zip(op.axes(node), spread(pattern, op.rank(node)), strict=True):
            if isinstance(term, Dots):
                if factors.resolve(expr) != ONE:
                    if distance in dots:
                        op.unify(dots[distance], expr)
                    dots.setdefault(distance, expr)
            else:
                _match(term, expr, op, notation, bindings, sizes)
    op.mix(*(bindings[name] for name in sorted(notation.contracted | notation.mixed) if name in bindings))
    kinds = op.node.meta["type"]
    results = [
        tuple(
            dots.get(distance, ONE)
            if isinstance(term, Dots)
            else _instance(term, op, notation, bindings, sizes, kind.shape[index])
            for index, (term, distance) in enumerate(spread(pattern, len(kind.shape)))
        )
        for pattern, kind in zip(notation.results, kinds if isinstance(kinds, tuple) else (kinds,), strict=False)
    ]
    return tuple(results) if isinstance(kinds, tuple) else results[0]


def _result_shape(node: fx.Node) -> tuple[Size, ...] | None:
    kind = node.meta["type"]
    return kind.shape if isinstance(kind, TensorType) else None


def _match(
    term: Term, expr: Expr, op: Op, notation: Notation, bindings: dict[str, Expr], sizes: Mapping[str, Size]
) -> None:
    if isinstance(term, Name):
        if term.name in notation.positions:
            op.pin(expr, f"position '{term.name}'", "position")
        if term.name in bindings:
            op.unify(bindings[term.name], expr)
        else:
            bindings[term.name] = expr
        return
    if isinstance(term, Compound | Concat):
        parts = [sizes.get(part.name) if isinstance(part, Name) else None for part in term.parts]
        known = [part for part in parts if part is not None]
        pieces = None
        if len(known) == len(parts):
            pieces = (factors.split if isinstance(term, Compound) else factors.cut)(expr, known, op.where)
        if pieces is None:
            op.pin(expr, f"does not divide into {term_text(term)}")
            pieces = [op.pinned(size) for size in known] if len(known) == len(parts) else []
        for part, piece in zip(term.parts, pieces, strict=False):
            _match(part, piece, op, notation, bindings, sizes)


def _instance(
    term: Term, op: Op, notation: Notation, bindings: dict[str, Expr], sizes: Mapping[str, Size], size: Size
) -> Expr:
    if isinstance(term, Name):
        if term.name not in bindings:
            bindings[term.name] = op.pinned(sizes.get(term.name, size), f"position '{term.name}'", "position")
        return bindings[term.name]
    if isinstance(term, Compound | Concat):
        parts = [_instance(part, op, notation, bindings, sizes, Size(1)) for part in term.parts]
        return factors.resolve(
            factors.Product(tuple(parts)) if isinstance(term, Compound) else factors.Sum(tuple(parts))
        )
    return ONE


def term_text(term: Term) -> str:
    if isinstance(term, Name):
        return term.name
    if isinstance(term, Single):
        return "1"
    if isinstance(term, Dots):
        return "..."
    return f"({(' + ' if isinstance(term, Concat) else ' ').join(map(term_text, term.parts))})"


def solve(notation: Notation, shapes: Sequence[Sequence[Size]], result: Sequence[Size] | None) -> Mapping[str, Size]:
    """The size of every factor, from the shapes of operands and result. `...` stands for the product of its dimensions.

    Plain dimensions come first; a product with one unknown part is then divided by the known ones.
    """
    return _solved(notation, tuple(map(tuple, shapes)), None if result is None else tuple(result))


@lru_cache(maxsize=4096)
def _solved(
    notation: Notation, shapes: tuple[tuple[Size, ...], ...], result: tuple[Size, ...] | None
) -> Mapping[str, Size]:
    sizes: dict[str, Size] = {}
    compounds: list[tuple[Compound, Size]] = []
    patterns = [*zip(notation.operands, shapes, strict=False)]
    if result is not None and len(notation.results) == 1:
        patterns.append((notation.results[0], result))
    for pattern, shape in patterns:
        dots = Size(1)
        for (term, _), size in zip(spread(pattern, len(shape)), shape, strict=True):
            if isinstance(term, Name):
                if sizes.get(term.name, Size(1)) == Size(1):
                    sizes[term.name] = size
            elif isinstance(term, Compound):
                compounds.append((term, size))
            elif isinstance(term, Dots):
                dots = dots * size
        if Dots() in pattern and dots.coefficient >= sizes.get("...", Size(0)).coefficient:
            sizes["..."] = dots
    for _ in range(len(compounds) + 1):
        for term, size in compounds:
            unknown = [part.name for part in term.parts if isinstance(part, Name) and part.name not in sizes]
            if len(unknown) == 1:
                rest = math.prod(
                    (sizes[p.name] for p in term.parts if isinstance(p, Name) and p.name in sizes), start=Size(1)
                )
                if rest.divides(size):
                    sizes[unknown[0]] = size // rest
    return sizes
