"""Views: reshape, permute, expand and their kin. They refine factors; their size arguments follow the widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from anytimeify.ir import Size
from anytimeify.ir.schema import bound
from anytimeify.rules import factors
from anytimeify.rules.factors import ONE, Expr
from anytimeify.rules.lifting import plain, take
from anytimeify.rules.op import Call, Dims, Op, Resize
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


def reshape(op: Op, axes: Dims, old: Sequence[Size], new: Sequence[Size]) -> Dims:
    """Read the same elements in another shape. Dimensions are grouped from the left into the smallest runs of equal
    product, so that dimensions that stay stay themselves; inside a run the axes are joined and split again."""
    result: list[Expr] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = right = Size(1)
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if (left.divides(right) or j == len(new)) and i < len(old):
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            else:
                return (*result, *_regroup(op, axes[start_i:], new[start_j:]))
        result.extend(_regroup(op, axes[start_i:i], new[start_j:j]))
    return tuple(result)


def _regroup(op: Op, run: Sequence[Expr], sizes: Sequence[Size]) -> list[Expr]:
    joined = factors.product(run)
    if len(sizes) == 1:
        return [joined]
    pieces = factors.split(joined, sizes, op.where)
    if pieces is None:
        op.pin(joined, "reshaped across its factors")
        pieces = [op.pinned(size, "reshaped across factors") for size in sizes]
    return pieces


def _view(op: Op) -> Dims:
    source = op["self"]
    if any(size.coefficient == 0 for size in op.type().shape):
        return op.give_up("an empty tensor")
    return reshape(op, op.axes(source), op.type(source).shape, op.type().shape)


def _shape_argument(name: str) -> Any:
    def resize(r: Resize) -> dict[str, Any]:
        return {name: r.shape_argument(r.arguments[name], r.node.meta["type"].shape, r.types[r.node].shape)}

    return resize


# where a dimension of the result lies in what is read, for the views of which it is told
def _flattened(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    given = bound(node)
    wide = len(given["self"].meta["type"].shape)
    first, last = given["start_dim"] % wide, given["end_dim"] % wide
    return None if dim == first else {given["self"]: dim + (last - first) * (dim > first)}


def _unflattened(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    given = bound(node)
    more = len(given["sizes"]) - 1
    at = given["dim"] % (len(node.meta["type"].shape) - more)
    return None if at <= dim <= at + more else {given["self"]: dim - more * (dim > at)}


axis_rule(
    aten("view.default", "_unsafe_view.default"), _view, literals=_shape_argument("size"), view=True, kind="reshape"
)
axis_rule(aten("reshape.default"), _view, literals=_shape_argument("shape"), view=True, kind="reshape")
axis_rule(
    aten("flatten.using_ints"),
    _view,
    view=True,
    kind="reshape",
    sources=_flattened,
    module=plain(nn.Flatten, take(start_dim="start_dim", end_dim="end_dim")),
)


def _unflatten(r: Resize) -> dict[str, Any]:
    dim = int(r.arguments["dim"]) % len(r.types[r.arguments["self"]].shape)
    count = len(r.arguments["sizes"])
    old, new = (kind.shape[dim : dim + count] for kind in (r.node.meta["type"], r.types[r.node]))
    return {"sizes": r.shape_argument(r.arguments["sizes"], old, new)}


axis_rule(aten("unflatten.int"), _view, literals=_unflatten, view=True, kind="reshape", sources=_unflattened)


def _view_as(op: Op) -> Dims:
    result = op.axes(op["other"])
    for one, other in zip(_view(op), result, strict=True):
        op.unify(one, other)
    return result


axis_rule(aten("reshape_as.default", "view_as.default"), _view_as, view=True, kind="reshape")
axis_rule(aten("unsqueeze.default", "squeeze.dim", "squeeze.dims"), _view, view=True, kind="reshape")


# squeezing whatever is of size one would also squeeze an axis that a width has left one element of
def _squeezed(r: Resize) -> Call:
    shape = r.arguments["self"].meta["type"].shape
    dims = [dim for dim, size in enumerate(shape) if size == Size(1)]
    return Call(torch.ops.aten.squeeze.dims, {"self": r.arguments["self"], "dim": dims})


axis_rule(aten("squeeze.default"), _view, literals=_squeezed, view=True, kind="reshape")


def _permute(op: Op) -> Dims:
    x = op.axes(op["self"])
    return tuple(x[dim] for dim in op.dims("dims"))


def _transpose(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    names = ("dim0", "dim1") if op["dim0"] is not None else ("axis0", "axis1")
    one, other = (op.dim(name) for name in names)
    x[one], x[other] = x[other], x[one]
    return tuple(x)


def _reverse_last(op: Op) -> Dims:
    x = op.axes(op["self"])
    return x if len(x) < 2 else (*x[:-2], x[-1], x[-2])


def _movedim(op: Op) -> Dims:
    x = op.axes(op["self"])
    source, target = op.dims("source"), op.dims("destination")
    rest = iter(dim for dim in range(len(x)) if dim not in source)
    order = [source[target.index(place)] if place in target else next(rest) for place in range(len(x))]
    return tuple(x[dim] for dim in order)


def _transposed(node: fx.Node, dim: int) -> dict[fx.Node, int]:
    given, rank = bound(node), len(node.meta["type"].shape)
    one, other = given["dim0"] % rank, given["dim1"] % rank
    return {given["self"]: {one: other, other: one}.get(dim, dim)}


axis_rule(aten("permute.default"), _permute, view=True, kind="permutation")
axis_rule(aten("transpose.int"), _transpose, view=True, kind="permutation", sources=_transposed)
axis_rule(aten("swapaxes.default", "swapdims.default"), _transpose, view=True, kind="permutation")
axis_rule(
    aten("t.default", "numpy_T.default", "mT.default", "mH.default", "matrix_H.default", "adjoint.default"),
    _reverse_last,
    view=True,
    kind="permutation",
)
axis_rule(aten("movedim", "moveaxis"), _movedim, view=True, kind="permutation")


# expand makes axes that have one element long: their length is open, and follows whatever they meet
def _expand(op: Op) -> Dims:
    x, shape = op.axes(op["self"]), op.type().shape
    lead = len(shape) - len(x)
    return tuple(
        op.open(size) if dim < lead or factors.resolve(x[dim - lead]) == ONE else x[dim - lead]
        for dim, size in enumerate(shape)
    )


axis_rule(
    aten("expand.default", "broadcast_to.default"),
    _expand,
    literals=_shape_argument("size"),
    view=True,
    kind="expansion",
)


# repeat: (times c); repeat_interleave: (c times)
def _repeat(op: Op) -> Dims:
    x = op.axes(op["self"])
    times = list(op["repeats"] if op["repeats"] is not None else op["dims"])
    lead: list[Expr] = [ONE] * (len(times) - len(x))
    times = [1] * (len(x) - len(times)) + times
    inputs = [*([Size(1)] * len(lead)), *op.type(op["self"]).shape]
    return tuple(
        factors.product([op.pinned(size // before if before.divides(size) else size, "repeated"), expr])
        for expr, before, size in zip([*lead, *x], inputs, op.type().shape, strict=True)
    )


axis_rule(aten("repeat.default", "tile.default"), _repeat, kind="expansion")


def _repeat_interleave(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    if op["dim"] is None:
        return op.give_up("repeated over all elements")
    dim = op.dim()
    times = op.pinned(op.type().shape[dim] // op.type(op["self"]).shape[dim], "repeated")
    x[dim] = factors.product([x[dim], times])
    return tuple(x)


axis_rule(
    aten("repeat_interleave.self_int"), _repeat_interleave, kind="expansion", placed=lambda node: ()
)  # with a batch that stays as it is
