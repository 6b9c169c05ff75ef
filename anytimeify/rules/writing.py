"""Writing into a tensor: at slices, at indices, along a dimension; and adding up what goes to one place."""

from __future__ import annotations

import torch
from torch import fx

from anytimeify.rules import factors
from anytimeify.rules.factors import Expr
from anytimeify.rules.join import bounds, indexed, sliced
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


# writing back: base and source agree everywhere but where it is written. A slice is a part of the base's sum; of
# anything else the written dimensions are pinned.
def _scatter(op: Op) -> Dims:
    x, source, dim = op.axes(op["self"]), op.axes(op["src"]), op.dim()
    if len(source) == len(x):
        sizes = op.type(op["self"]).shape[dim], op.type(op["src"]).shape[dim]
        part = x[dim] if sizes[0] == sizes[1] else sliced(op, x[dim], *sizes)
        if part is not None:
            op.unify(part, source[dim])
        else:
            op.pin(source[dim], "written to in part")
        source = (*source[:dim], *source[dim + 1 :])
    if "part" not in op.memo:
        op.pin(x[dim], "written to in part")
    for one, other in zip([*x[:dim], *x[dim + 1 :]], source, strict=True):
        op.unify(one, other)
    return x


axis_rule(aten("slice_scatter.default"), _scatter, literals=bounds)
axis_rule(aten("select_scatter.default"), _scatter)


def _diagonal_scatter(op: Op) -> Dims:
    x, dims = op.axes(op["self"]), (op.dim("dim1"), op.dim("dim2"))
    for written in (x[dims[0]], x[dims[1]], op.axes(op["src"])[-1]):
        op.pin(written, "a diagonal of positions", "position")
    for one, other in zip([e for dim, e in enumerate(x) if dim not in dims], op.axes(op["src"])[:-1], strict=True):
        op.unify(one, other)
    return x


axis_rule(aten("diagonal_scatter.default"), _diagonal_scatter)


# writing at indices: what is indexed is pinned, and in all other dimensions base and values agree
def _index_put(op: Op) -> Dims:
    x, values = op.axes(op["self"]), op.axes(op["values"])
    indices = [*op["indices"], *[None] * (len(x) - len(op["indices"]))]
    taken = [dim for dim, index in enumerate(indices) if index is not None]
    if any(op.type(indices[dim]).dtype == torch.bool for dim in taken):
        return op.give_up("written to by a mask")
    for dim in taken:
        op.pin(x[dim], "written to in part")
        for expr in op.axes(indices[dim]):
            op.pin(expr, "an index", "position")
    rank = max(op.rank(indices[dim]) for dim in taken)
    at = taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0
    rest: list[Expr | None] = [expr for dim, expr in enumerate(x) if dim not in taken]
    targets = [*rest[:at], *[None] * rank, *rest[at:]]
    for value, target in zip(reversed(values), reversed(targets), strict=False):
        if target is None:
            op.pin(value, "written at indices", "position")
        elif factors.resolve(value) != factors.ONE:
            op.unify(target, value)
    return x


axis_rule(aten("index_put.default"), _index_put, kind="gather", placed=indexed)


# a place along one dimension for every element: that dimension keeps its size; along all others base, index and values
# agree, where they are of the same size. An index that is expanded along channels (messages of a graph) follows them.
def _at_places(op: Op) -> Dims:
    x, dim = op.axes(op["self"]), op.dim()
    op.pin(x[dim], "written at indices", "position")
    op.mix(x[dim])
    for operand in op.operands()[1:]:
        if op.rank(operand) < len(x):
            continue  # one value for all
        for place, (one, other) in enumerate(zip(x, op.axes(operand), strict=True)):
            if place != dim and op.type(op["self"]).shape[place] == op.type(operand).shape[place]:
                op.unify(one, other)
            else:
                op.pin(one, "written at indices", "position")
                op.pin(other, "written at indices", "position")
    return x


axis_rule(aten("scatter", "scatter_add", "scatter_reduce"), _at_places, kind="gather")


# an index for every row of the values, in all other dimensions base and values agree
def _rows(op: Op) -> Dims:
    x, dim = op.axes(op["self"]), op.dim()
    op.pin(x[dim], "written at indices", "position")
    op.mix(x[dim])
    for expr in op.axes(op["index"]):
        op.pin(expr, "an index", "position")
    source = op["source"]
    for place, (one, other) in enumerate(zip(x, op.axes(source) if isinstance(source, fx.Node) else (), strict=False)):
        if place == dim:
            op.pin(other, "written at indices", "position")
        else:
            op.unify(one, other)
    return x


axis_rule(
    aten("index_add.default", "index_copy.default", "index_reduce.default", "index_fill.int_Scalar"),
    _rows,
    kind="gather",
)
