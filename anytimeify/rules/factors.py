"""The algebra of tensor dimensions: what a dimension is made of, and when two of them are the same.

A dimension is an expression over factors: a single `Factor`, a `Product` (heads x head size, a flattened tensor;
outermost first) or a `Sum` (a concatenation). Two operations build all knowledge:

* `unify` says that two expressions are the same axis, in size and order;
* `split` and `cut` refine a factor into a product or a sum of new ones (`view`, `chunk`).

A factor that must keep its size is pinned, with the reason. Expressions whose factors are all pinned are opaque: they
never fail to unify or to split, so that 14 read as 2x7 here and as 7x2 there is no contradiction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeAlias

from anytimeify.ir import Origin, Size

__all__ = ["ONE", "Expr", "Factor", "Pin", "Product", "Sum", "Where"]

PinKind: TypeAlias = Literal["fixed", "position", "batch", "input", "output", "constant"]
UNIT = Size(1)


@dataclass(frozen=True)
class Where:
    """The node on whose account something is pinned, and the axes whose elements it puts in another order."""

    node: str = ""
    op: str = ""
    origin: Origin = Origin()
    reordered: list[Expr] = field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True)
class Pin:
    """Why an axis keeps its size, and the node that says so."""

    reason: str
    where: Where = Where()
    kind: PinKind = "fixed"

    def __str__(self) -> str:
        place = f" ({self.where.origin})" if self.where.op else ""
        return f"{self.reason}: {self.where.op}{place}" if self.where.op else self.reason


class Factor:
    """An atomic axis. Equal factors are merged (union-find); a refined factor points to the expression that replaced
    it.
    """

    __slots__ = ("bound", "free", "merged", "ordered", "pin", "size", "stands", "stream")

    def __init__(self, size: Size, pin: Pin | None = None, *, free: bool = False) -> None:
        self.size = size
        self.pin = pin
        self.free = free  # some floating-point parameter (or channel padding) has this axis, so it may be narrowed
        self.ordered: Pin | None = None  # may be narrowed but not permuted
        self.stream = False  # runs through residual additions
        self.merged: Factor | None = None
        self.bound: Expr | None = None
        self.stands = size != UNIT  # neither merged nor refined nor of size one: `resolve` gives it back

    def __repr__(self) -> str:
        return f"{'!' if self.pin else ''}{self.size}"


@dataclass(frozen=True)
class Product:
    """`(a b)`: outermost first."""

    parts: tuple[Expr, ...]
    stands: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"({' '.join(map(repr, self.parts))})"


@dataclass(frozen=True)
class Sum:
    """`(a + b)`: one after the other."""

    parts: tuple[Expr, ...]
    stands: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"({' + '.join(map(repr, self.parts))})"


Expr: TypeAlias = Factor | Product | Sum
ONE = Product(())
_STANDS = attrgetter("stands")


def find(factor: Factor) -> Factor:
    while factor.merged is not None:
        if factor.merged.merged is not None:
            factor.merged = factor.merged.merged
        factor = factor.merged
    return factor


def size_of(expr: Expr) -> Size:
    if isinstance(expr, Factor):
        return expr.size
    if isinstance(expr, Product):
        return math.prod((size_of(part) for part in expr.parts), start=UNIT)
    return add_sizes([size_of(part) for part in expr.parts])


def add_sizes(sizes: Sequence[Size]) -> Size:
    total, symbols = 0, {size.symbols for size in sizes}
    if len(symbols) > 1:
        return Size(1, (" + ".join(map(str, sizes)).replace("*", "."),))
    for size in sizes:
        total += size.coefficient
    return Size(total, symbols.pop() if symbols else ())


def resolve(expr: Expr) -> Expr:
    """The expression over current factors: merged and refined ones replaced, nested products and sums flattened,
    factors of size one dropped."""
    if isinstance(expr, Factor):
        root = find(expr)
        if root.bound is None:
            return ONE if root.size == UNIT else root
        root.bound = resolve(root.bound)
        return root.bound
    # Long sums are read at every node that has them: what is resolved already is recognised, not built anew.
    if len(expr.parts) != 1 and all(map(_STANDS, expr.parts)):
        return expr
    parts: list[Expr] = []
    for part in map(resolve, expr.parts):
        if type(part) is type(expr):
            parts.extend(part.parts)
        else:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return Product(tuple(parts)) if isinstance(expr, Product) else Sum(tuple(parts))


def product(parts: Sequence[Expr]) -> Expr:
    return resolve(Product(tuple(parts)))


def flat(dims: Iterable[Any]) -> Iterator[Expr]:
    """Every expression of the dimensions of a value; an operation with several results has a tuple for each."""
    for one in dims:
        if isinstance(one, tuple):
            yield from flat(one)
        else:
            yield one


def leaves(expr: Expr) -> Iterator[Factor]:
    """The factors of a resolved expression, outermost first."""
    if isinstance(expr, Factor):
        yield expr
        return
    for part in expr.parts:
        if type(part) is Factor:  # long sums are flat
            yield part
        else:
            yield from leaves(part)


def is_pinned(expr: Expr) -> bool:
    return all(leaf.pin is not None for leaf in leaves(resolve(expr)))


def first_pin(expr: Expr) -> Pin | None:
    return next((leaf.pin for leaf in leaves(resolve(expr)) if leaf.pin is not None), None)


def pin(expr: Expr, reason: Pin) -> None:
    for leaf in leaves(resolve(expr)):
        leaf.pin = leaf.pin or reason


def keep_order(expr: Expr, reason: Pin) -> None:
    """The axis may be narrowed but its elements may not be permuted."""
    for leaf in leaves(resolve(expr)):
        leaf.ordered = leaf.ordered or reason


def mark_stream(expr: Expr) -> None:
    for leaf in leaves(resolve(expr)):
        leaf.stream = True


def opaque(size: Size, reason: Pin) -> Expr:
    return ONE if size == UNIT else Factor(size, reason)


def _child(parent: Factor, size: Size) -> Factor:
    child = Factor(size, parent.pin, free=parent.free)
    child.ordered, child.stream = parent.ordered, parent.stream
    return child


def _bind(factor: Factor, expr: Expr) -> None:
    """Replace a factor by an expression of the same size."""
    for leaf in leaves(expr):
        leaf.pin = leaf.pin or factor.pin
        leaf.free |= factor.free
        leaf.ordered = leaf.ordered or factor.ordered
        leaf.stream |= factor.stream
    factor.bound, factor.stands = expr, False


def _merge(one: Factor, other: Factor) -> None:
    one.pin = one.pin or other.pin
    one.free |= other.free
    one.ordered = one.ordered or other.ordered
    one.stream |= other.stream
    other.merged, other.stands = one, False


def unify(one: Expr, other: Expr, where: Where) -> None:
    """Make two expressions the same axis. What cannot be lined up is pinned, with `where` as the reason."""
    one, other = resolve(one), resolve(other)
    if one == other:
        return
    if is_pinned(one) and is_pinned(other):
        _spread_batch(one, other)
        return
    if is_pinned(one) or is_pinned(other):
        reason = (first_pin(one) if is_pinned(one) else first_pin(other)) or Pin("meets a single entry", where)
        pin(one, reason)
        pin(other, reason)
    elif size_of(one) != size_of(other) or not _unify(one, other, where):
        reason = Pin(f"axes of {size_of(one)} and {size_of(other)} do not line up", where)
        pin(one, reason)
        pin(other, reason)


def _spread_batch(one: Expr, other: Expr) -> None:
    """What meets the batch sample by sample enumerates samples too, wherever its size came from."""
    if isinstance(one, Factor) and isinstance(other, Factor) and one.size == other.size and one.size.symbols:
        for batch, unknown in ((one, other), (other, one)):
            if batch.pin is not None and batch.pin.kind == "batch":
                unknown.pin = batch.pin


def _unify(one: Expr, other: Expr, where: Where) -> bool:
    if isinstance(one, Factor) and isinstance(other, Factor):
        _merge(one, other)
        return True
    if isinstance(one, Factor) or isinstance(other, Factor):
        factor, expr = (one, other) if isinstance(one, Factor) else (other, one)
        assert isinstance(factor, Factor)
        _bind(factor, expr)
        return True
    if isinstance(one, Sum) and isinstance(other, Sum):
        return _unify_sums(one, other, where)
    if isinstance(one, Product) and isinstance(other, Product):
        return _unify_products(one, other, where)
    total, factors = (one, other) if isinstance(one, Sum) else (other, one)
    pieces = cut(factors, [size_of(part) for part in total.parts], where)
    if pieces is None:
        return False
    for part, piece in zip(total.parts, pieces, strict=True):
        unify(part, piece, where)
    return True


def _unify_products(one: Product, other: Product, where: Where) -> bool:
    """Line two products up from the outside, refining the larger factor at every step."""
    first, second = list(one.parts), list(other.parts)
    while first and second:
        a, b = first.pop(0), second.pop(0)
        if size_of(a) == size_of(b):
            unify(a, b, where)
        elif size_of(a).divides(size_of(b)) and (halves := split(b, [size_of(a), size_of(b) // size_of(a)], where)):
            unify(a, halves[0], where)
            second.insert(0, halves[1])
        elif size_of(b).divides(size_of(a)) and (halves := split(a, [size_of(b), size_of(a) // size_of(b)], where)):
            unify(halves[0], b, where)
            first.insert(0, halves[1])
        elif is_pinned(a) and is_pinned(b) and first and second:
            first[0] = Product((a, first[0]))
            second[0] = Product((b, second[0]))
        else:
            return False
    return not first and not second


def _unify_sums(one: Sum, other: Sum, where: Where) -> bool:
    """Line two concatenations up, cutting the longer part at every step."""
    first, second = list(one.parts), list(other.parts)
    while first and second:
        a, b = first.pop(0), second.pop(0)
        sizes = size_of(a), size_of(b)
        if sizes[0] == sizes[1]:
            unify(a, b, where)
            continue
        if not (sizes[0].static and sizes[1].static):
            return False
        longer, shorter = (a, b) if sizes[0] > sizes[1] else (b, a)
        cuts = [size_of(shorter), Size(abs(sizes[0].coefficient - sizes[1].coefficient))]
        pieces = cut(longer, cuts, where)
        if pieces is None:
            return False
        unify(shorter, pieces[0], where)
        (first if longer is a else second).insert(0, pieces[1])
    return not first and not second


def split(expr: Expr, sizes: Sequence[Size], where: Where) -> list[Expr] | None:
    """Read one dimension as a product of `sizes`, outermost first; None if the factors do not divide so."""
    expr = resolve(expr)
    if is_pinned(expr):
        reason = first_pin(expr) or Pin("a constant size", where, "constant")
        return [opaque(size, reason) for size in sizes]
    rest: list[Expr] = list(expr.parts) if isinstance(expr, Product) else [expr]
    result: list[Expr] = []
    for size in sizes:
        taken: list[Expr] = []
        while size != UNIT:
            if not rest:
                return None
            part = rest.pop(0)
            if size_of(part).divides(size):
                taken.append(part)
                size = size // size_of(part)
                continue
            if not size.divides(size_of(part)):
                return None
            halves = _split_part(part, size, size_of(part) // size, where)
            if halves is None:
                return None
            taken.append(halves[0])
            rest.insert(0, halves[1])
            size = UNIT
        result.append(product(taken))
    return result if all(size_of(part) == UNIT for part in rest) else None


def _split_part(part: Expr, outer: Size, inner: Size, where: Where) -> tuple[Expr, Expr] | None:
    """Split a factor or a sum into (outer, inner)."""
    if isinstance(part, Factor):
        if part.pin is not None:
            return Factor(outer, part.pin), Factor(inner, part.pin)
        pair = _child(part, outer), _child(part, inner)
        _bind(part, Product(pair))
        return pair
    assert isinstance(part, Sum)
    sizes = [size_of(piece) for piece in part.parts]
    equal_parts = outer == Size(len(sizes)) and all(size == inner for size in sizes)
    if not equal_parts and all(inner.divides(size) for size in sizes):
        halves = [split(piece, [size // inner, inner], where) for piece, size in zip(part.parts, sizes, strict=True)]
        if any(half is None for half in halves):
            return None
        known = [half for half in halves if half is not None]
        for half in known[1:]:
            unify(known[0][1], half[1], where)
        return resolve(Sum(tuple(half[0] for half in known))), resolve(known[0][1])
    if not outer.static:
        return None
    pieces = list(part.parts) if equal_parts else cut(part, [inner] * outer.coefficient, where)
    if pieces is None:
        return None
    for piece in pieces[1:]:
        unify(pieces[0], piece, where)
    return Factor(outer, Pin("the number of joined parts", where, "constant")), resolve(pieces[0])


def cut(expr: Expr, sizes: Sequence[Size], where: Where) -> list[Expr] | None:
    """Read one dimension as a concatenation of `sizes`; None if the factors do not allow it."""
    expr = resolve(expr)
    if len(sizes) == 1:
        return [expr]
    if is_pinned(expr):
        reason = first_pin(expr) or Pin("a constant size", where, "constant")
        return [opaque(size, reason) for size in sizes]
    if isinstance(expr, Factor):
        children = [_child(expr, size) for size in sizes]
        _bind(expr, Sum(tuple(children)))
        return list(children)
    if isinstance(expr, Sum):
        return _cut_sum(expr, sizes, where)
    shuffled = _cut_shuffled(expr, sizes, where)
    if shuffled is not None:
        return shuffled
    outer, inner = expr.parts[0], product(expr.parts[1:])
    if not all(size_of(inner).divides(size) for size in sizes):
        return None
    pieces = cut(outer, [size // size_of(inner) for size in sizes], where)
    return None if pieces is None else [product([piece, inner]) for piece in pieces]


def _cut_sum(expr: Sum, sizes: Sequence[Size], where: Where) -> list[Expr] | None:
    rest = list(expr.parts)
    result: list[Expr] = []
    for size in sizes:
        taken: list[Expr] = []
        need = size.coefficient
        while need > 0:
            if not rest:
                return None
            part = rest.pop(0)
            length = size_of(part)
            if not length.static:
                return None
            if length.coefficient > need:
                pieces = cut(part, [Size(need), Size(length.coefficient - need)], where)
                if pieces is None:
                    return None
                part, length = pieces[0], Size(need)
                rest.insert(0, pieces[1])
            taken.append(part)
            need -= length.coefficient
        result.append(resolve(Sum(tuple(taken))))
    return result


def _cut_shuffled(expr: Product, sizes: Sequence[Size], where: Where) -> list[Expr] | None:
    """A channel shuffle turns two halves (2, c) into (c, 2); cutting that in two gives halves of size c again.

    The halves hold other channels than before, which is nothing to a network cut to a width (sizes and weights'
    prefixes agree), but the order of the channels now matters."""
    if len(set(sizes)) != 1 or is_pinned(expr.parts[0]):
        return None
    for index, part in enumerate(expr.parts[1:], start=1):
        if isinstance(part, Factor) and part.pin is not None and part.size == Size(len(sizes)):
            piece = product([*expr.parts[:index], *expr.parts[index + 1 :]])
            keep_order(piece, Pin("a channel shuffle fixes the order", where))
            where.reordered.append(piece)
            return [piece] * len(sizes)
    return None
