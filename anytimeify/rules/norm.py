"""Normalisations. `c~`: statistics are taken along c, though c passes through."""

from __future__ import annotations

from typing import Any

from anytimeify import factors
from anytimeify.ir import Size
from anytimeify.rules.op import Dims, Op, Resize, axis_rule
from anytimeify.rules.targets import aten

axis_rule(aten("batch_norm.default", "instance_norm.default"), "n c ..., c, c, c, c -> n c ...")


# layer norm and RMS norm: the last k dimensions, each with its own factor
def _last_dimensions(op: Op) -> Dims:
    x = op.axes(op["input"])
    for parameter in (op["weight"], op["bias"]):
        if parameter is not None:
            for one, other in zip(reversed(x), reversed(op.axes(parameter)), strict=False):
                op.unify(one, other)
    return x


def _normalized_shape(r: Resize) -> dict[str, Any]:
    shape = r.types[r.node].shape
    count = len(r.arguments["normalized_shape"])
    return {"normalized_shape": [size.coefficient for size in shape[len(shape) - count :]]}


axis_rule(aten("layer_norm.default", "rms_norm.default"), _last_dimensions, literals=_normalized_shape)


# group norm: (g c~), groups outermost, so that whole groups are cut
def _group_norm(op: Op) -> Dims:
    x = op.axes(op["input"])
    groups = int(op["num_groups"])
    pieces = factors.split(x[1], [Size(groups), op.type(op["input"]).shape[1] // Size(groups)], op.where)
    if pieces is None:
        op.pin(x[1], "does not divide into groups")
        pieces = [op.pinned(Size(groups))]
    op.memo["groups"] = pieces[0]
    for parameter in (op["weight"], op["bias"]):
        if parameter is not None:
            op.unify(x[1], op.axes(parameter)[0])
    return x


axis_rule(
    aten("group_norm.default"),
    _group_norm,
    literals=lambda r: {"num_groups": r.size(r.memo["groups"]).coefficient},
)


def _weight_norm(op: Op) -> Dims:
    v, g = op.axes(op["v"]), op.axes(op["g"])
    if len(g) == len(v):
        op.unify(v[op.dim(of=op["v"])], g[op.dim(of=op["v"])])
    return v


axis_rule(aten("_weight_norm.default"), _weight_norm)
