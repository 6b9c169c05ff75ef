"""Reductions: mean, sum, extrema, norms, variances. The reduced dimensions go; nothing is pinned by it."""

from __future__ import annotations

from typing import Any

from torch import fx

from anytimeify.ir import TensorType
from anytimeify.ir.schema import bound
from anytimeify.rules.factors import ONE, Expr
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.pointwise import pointwise
from anytimeify.rules.table import Joined, axis_rule
from anytimeify.rules.targets import aten


def _reduce(op: Op) -> Any:
    x = op.axes(op["self"])
    kinds = op.node.meta["type"]
    first = kinds[0] if isinstance(kinds, tuple) else kinds
    assert isinstance(first, TensorType)
    gone = set(op.dims())
    op.mix(*(x[dim] for dim in gone))
    if len(first.shape) == 0:
        result: Dims = ()
    elif len(first.shape) == len(x):
        result = tuple(ONE if dim in gone else expr for dim, expr in enumerate(x))
    else:
        result = tuple(expr for dim, expr in enumerate(x) if dim not in gone)
    return tuple(result for _ in kinds) if isinstance(kinds, tuple) else result


NAMES = (
    "mean sum amax amin prod any all var std var_mean std_mean logsumexp linalg_vector_norm norm nansum count_nonzero"
)
JOINED = aten("mean.dim", "sum.dim_IntList", "amax", "amin")
axis_rule([one for one in aten(*NAMES.split()) if one not in JOINED], _reduce, kind="reduction")


def _joined(name: str) -> Joined:
    (operation,) = aten(name)
    return lambda one, other, share: (operation, (one, other))


def _joined_mean(one: fx.Node, other: fx.Node, share: float) -> Any:
    (lerp,) = aten("lerp.Scalar")
    return lerp, (one, other, share)


for reduction, operation in (("sum.dim_IntList", "add.Tensor"), ("amax", "maximum"), ("amin", "minimum")):
    axis_rule(aten(reduction), _reduce, kind="reduction", joined=_joined(operation))


def _averaged(node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
    given = bound(node)
    wide = len(given["self"].meta["type"].shape)
    gone = {one % wide for one in given["dim"] or range(wide)}
    return None if given["keepdim"] else {given["self"]: [one for one in range(wide) if one not in gone][dim]}


axis_rule(aten("mean.dim"), _reduce, kind="reduction", sources=_averaged, joined=_joined_mean)


# the index of an extremum names an element, so the dimension is pinned where that is read; its value alone does not
def _extremum(op: Op) -> Any:
    x: list[Expr] = list(op.axes(op["self"]))
    values_alone = isinstance(op.node.meta["type"], tuple) and all(user.args[1] == 0 for user in op.node.users)
    if op["dim"] is not None and not values_alone:
        op.pin(x[op.dim()], "searched for an extremum")
    return _reduce(op)


axis_rule(
    aten("max.dim", "min.dim", "argmax.default", "argmin.default", "median.dim", "mode.default"),
    _extremum,
    kind="reduction",
)
axis_rule(aten("max.default", "min.default", "median.default"), _reduce, kind="reduction")
axis_rule(aten("max.other", "min.other"), pointwise, kind="pointwise")
