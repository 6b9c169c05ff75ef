"""Joining and parting: concatenation, stack, split, chunk, unbind, slices and indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Size
from anytimeify.ir.schema import bound
from anytimeify.rules import factors
from anytimeify.rules.factors import Expr
from anytimeify.rules.op import Call, Dims, Op, Resize
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


# A concatenation is a sum of its parts. Joined to positions (a class token before the patches) a part is positions too.
def _cat(op: Op) -> Dims:
    tensors = [node for node in op["tensors"] if op.type(node).shape != (Size(0),)]
    dim = op.dim(of=tensors[0])
    result = list(op.axes(tensors[0]))
    for node in tensors[1:]:
        for index, expr in enumerate(op.axes(node)):
            if index != dim:
                op.unify(result[index], expr)
    result[dim] = joined(op, [op.axes(node)[dim] for node in tensors], [op.type(node).shape[dim] for node in tensors])
    return tuple(result)


def joined(op: Op, parts: Sequence[Expr], sizes: Sequence[Size]) -> Expr:
    """The sum of some parts, empty ones left out, or an opaque axis if one of them is a position."""
    parts = [part for part, size in zip(parts, sizes, strict=True) if size != Size(0)]
    places = {leaf.pin.kind for part in parts for leaf in factors.leaves(factors.resolve(part)) if leaf.pin is not None}
    if places & {"position", "batch"} or not all(size.static for size in sizes):
        for part in parts:
            op.pin(part, "joined to positions", "position")
        return op.pinned(factors.add_sizes(sizes), "joined to positions", "position")
    return factors.resolve(factors.Sum(tuple(parts)))


def _joined(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    given = bound(node)
    return None if given["dim"] % len(node.meta["type"].shape) == dim else dict.fromkeys(given["tensors"], dim)


axis_rule(aten("cat.default", "concat.default", "concatenate.default"), _cat, kind="join", sources=_joined)


def _stack(op: Op) -> Dims:
    tensors = op["tensors"]
    dim = int(op["dim"]) % len(op.type().shape)
    result = list(op.axes(tensors[0]))
    for node in tensors[1:]:
        for one, other in zip(result, op.axes(node), strict=True):
            op.unify(one, other)
    return (*result[:dim], op.pinned(Size(len(tensors)), "stacked tensors"), *result[dim:])


def _stacked(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    given = bound(node)
    at = given["dim"] % len(node.meta["type"].shape)
    return None if at == dim else dict.fromkeys(given["tensors"], dim - (at < dim))


# with a batch that stays as it is
axis_rule(aten("stack.default"), _stack, kind="join", placed=lambda node: (), sources=_stacked)


# split, chunk: the parts of a sum
def _split(op: Op) -> tuple[Dims, ...]:
    x, dim = op.axes(op["self"]), op.dim()
    sizes = [kind.shape[dim] for kind in op.node.meta["type"]]
    pieces = factors.cut(x[dim], sizes, op.where)
    if pieces is None:
        op.pin(x[dim], f"cut into {', '.join(map(str, sizes))} across its factors")
        pieces = [op.pinned(size, "a part of a pinned axis") for size in sizes]
    return tuple((*x[:dim], piece, *x[dim + 1 :]) for piece in pieces)


def _split_sizes(r: Resize) -> Call | dict[str, Any]:
    dim = int(r.arguments["dim"]) % len(r.types[r.arguments["self"]].shape)
    old = [kind.shape[dim] for kind in r.node.meta["type"]]
    new = [kind.shape[dim] for kind in r.types[r.node]]
    if old == new or not all(size.static for size in new):
        return {}
    arguments = {"self": r.arguments["self"], "split_sizes": [size.coefficient for size in new], "dim": dim}
    return Call(torch.ops.aten.split_with_sizes.default, arguments)


def _elsewhere(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    """Along all other dimensions than the one that is cut."""
    given = bound(node)
    return None if given["dim"] % len(given["self"].meta["type"].shape) == dim else {given["self"]: dim}


axis_rule(
    aten(
        "split.Tensor",
        "split.sizes",
        "split_with_sizes.default",
        "chunk.default",
        "tensor_split.sections",
        "tensor_split.indices",
    ),
    _split,
    literals=_split_sizes,
    kind="split",
    sources=_elsewhere,
)


# unbind, select: the dimension disappears, and its elements have fixed meanings
def _unbind(op: Op) -> tuple[Dims, ...]:
    x, dim = op.axes(op["self"]), op.dim()
    op.pin(x[dim], "its entries are used one by one")
    return tuple((*x[:dim], *x[dim + 1 :]) for _ in op.node.meta["type"])


def _select(op: Op) -> Dims:
    x, dim = op.axes(op["self"]), op.dim()
    op.pin(x[dim], "one of its entries is taken")
    return (*x[:dim], *x[dim + 1 :])


def _selected(node: fx.Node, dim: int) -> dict[fx.Node, int]:
    given = bound(node)
    return {given["self"]: dim + (given["dim"] % len(given["self"].meta["type"].shape) <= dim)}


axis_rule(aten("unbind.int"), _unbind, kind="split", sources=_selected)
axis_rule(aten("select.int"), _select, view=True, kind="selection", sources=_selected)


# slice, narrow: a sum of what lies before, the slice, and what lies after
def _slice(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    dim = op.dim()
    before, after = op.type(op["self"]).shape[dim], op.type().shape[dim]
    if before == after:
        return tuple(x)
    if after == Size(0):  # what is left of a partial rotary embedding that turns everything
        x[dim] = op.pinned(after, "an empty slice")
        return tuple(x)
    part = sliced(op, x[dim], before, after)
    if part is None:
        op.pin(x[dim], "sliced")
        part = op.pinned(after, "sliced", "position")
    x[dim] = part
    return tuple(x)


def sliced(op: Op, whole: Expr, size: Size, length: Size) -> Expr | None:
    """The part of a dimension that a slice of several elements takes; None where it is no part of its sum."""
    start = 0 if op["start"] is None else op["start"]
    plain = op.arguments.get("step", 1) == 1 and isinstance(start, int) and size.static and length.static
    if not plain or factors.is_pinned(whole):
        return None
    total, count = size.coefficient, length.coefficient
    start = max(0, start + total) if start < 0 else start
    lengths = [start, count, total - start - count]
    pieces = factors.cut(whole, [Size(n) for n in lengths if n], op.where)
    if pieces is None:
        return None
    given = iter(pieces)
    parts: list[Expr | None] = [next(given) if n else None for n in lengths]
    assert parts[1] is not None
    if count == 1:
        op.pin(whole, "one of its entries is taken")
        return None
    op.memo["before"], op.memo["part"] = parts[0], parts[1]
    return parts[1]


def bounds(r: Resize) -> dict[str, Any]:
    """The bounds of a slice that `sliced` found to be a part of a sum."""
    if "part" not in r.memo:
        return {}
    start = r.size(r.memo["before"]).coefficient if r.memo["before"] is not None else 0
    length = r.size(r.memo["part"]).coefficient
    return {"start": start, "length": length} if "length" in r.arguments else {"start": start, "end": start + length}


axis_rule(
    aten("slice.Tensor", "narrow.default"), _slice, literals=bounds, view=True, kind="selection", sources=_elsewhere
)


# indexing: indexed dimensions are pinned; the others pass. The result's indexed dimensions stand where the first index
# stood, or in front when a dimension that is not indexed lies between two that are.
def _index(op: Op) -> Dims:
    x, indices = op.axes(op["self"]), list(op["indices"])
    indices += [None] * (len(x) - len(indices))
    taken = [dim for dim, index in enumerate(indices) if index is not None]
    if any(op.type(index).dtype == torch.bool for index in indices if index is not None):
        return op.give_up("indexed by a mask")
    for dim in taken:
        op.pin(x[dim], "indexed")
    index_rank = max(op.rank(indices[dim]) for dim in taken)
    neighbours = taken == list(range(taken[0], taken[-1] + 1))
    at = taken[0] if neighbours else 0
    rest = [expr for dim, expr in enumerate(x) if dim not in taken]
    shape = op.type().shape[at : at + index_rank]
    made: list[Expr] = [op.pinned(size, "an index", "position") for size in shape]
    for index in (indices[dim] for dim in taken):
        for expr in op.axes(index):
            op.pin(expr, "an index", "position")
    return (*rest[:at], *made, *rest[at:])


def indexed(node: fx.Node) -> Sequence[int]:
    """The dimensions that indices pick from: where the batch is among them, all are told apart."""
    given = bound(node)
    return [dim for dim, one in enumerate(given["indices"]) if one is not None]


axis_rule(aten("index.Tensor"), _index, kind="gather", placed=indexed)


def _index_select(op: Op) -> Dims:
    x, dim = list(op.axes(op["self"])), op.dim()
    op.pin(x[dim], "indexed")
    x[dim] = op.pinned(op.type().shape[dim], "an index", "position")
    return tuple(x)


axis_rule(aten("index_select.default"), _index_select, kind="selection")


# gather, top-k and the like: only dimensions that both keep pass
def _along_dimension(op: Op) -> Any:
    source: fx.Node = op["self"]
    x, dim = op.axes(source), op.dim()
    op.pin(x[dim], "selected along")
    for operand in op.operands()[1:]:
        for one, other in zip(x, op.axes(operand), strict=True):
            op.unify(one, other)
    kinds = op.node.meta["type"]
    shapes = [kind.shape for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    results = tuple((*x[:dim], op.pinned(shape[dim], kind="position"), *x[dim + 1 :]) for shape in shapes)
    return results if isinstance(kinds, tuple) else results[0]


axis_rule(aten("topk.default"), _along_dimension)


# the result has the shape of the index; only dimensions of equal size can be the same axis
def _gather(op: Op) -> Dims:
    x, index, dim = op.axes(op["self"]), op.axes(op["index"]), op.dim()
    sizes = op.type(op["self"]).shape, op.type(op["index"]).shape
    for place, (one, other) in enumerate(zip(x, index, strict=True)):
        if place != dim and sizes[0][place] == sizes[1][place]:
            op.unify(one, other)
        else:
            op.pin(one, "gathered from")
    return index


axis_rule(aten("gather.default"), _gather)


# differences of neighbours, and counts of values
def _neighbours(op: Op) -> Dims:
    x, dim = list(op.axes(op["self"])), op.dim()
    op.pin(x[dim], "the order along it matters")
    x[dim] = op.pinned(op.type().shape[dim], "differences", "position")
    return tuple(x)


axis_rule(aten("diff.default"), _neighbours)


def _one_hot(op: Op) -> Dims:
    return (*op.axes(op["self"]), op.pinned(op.type().shape[-1], "classes of a one-hot code"))


axis_rule(aten("one_hot.default"), _one_hot)


# a histogram counts all elements, whatever their place
def _histogram(op: Op) -> Dims:
    op.mix(*op.axes(op["self"]))
    return (op.pinned(op.type().shape[0], "counts of values"),)


axis_rule(aten("histc.default"), _histogram)
