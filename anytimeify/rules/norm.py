"""Normalisations. `c~`: statistics are taken along c, though c passes through."""

from __future__ import annotations

from typing import Any

from anytimeify import factors
from anytimeify.ir import Size
from anytimeify.rules.op import Dims, Op, Resize
from anytimeify.rules.table import axis_rule, build_rule
from anytimeify.rules.targets import aten

_per_channel = build_rule("n c ..., c, c, c, c -> n c ...")


# statistics of every channel for itself, over its positions and, in a batch norm, over the samples
def _instance_norm(op: Op) -> Dims:
    result: Dims = _per_channel.infer(op)
    op.mix(*op.axes(op["input"])[2:])
    return result


def _batch_norm(op: Op) -> Dims:
    op.mix(op.axes(op["input"])[0])
    return _instance_norm(op)


axis_rule(aten("instance_norm.default"), _instance_norm, kind="norm", training="use_input_stats")
axis_rule(aten("batch_norm.default"), _batch_norm, kind="norm", training="training")


# layer norm and RMS norm: the last k dimensions, each with its own factor
def _last_dimensions(op: Op) -> Dims:
    x = op.axes(op["input"])
    for parameter in (op["weight"], op["bias"]):
        if parameter is not None:
            for one, other in zip(reversed(x), reversed(op.axes(parameter)), strict=False):
                op.unify(one, other)
    op.mix(*x[len(x) - len(op["normalized_shape"]) :])
    return x


def _normalized_shape(r: Resize) -> dict[str, Any]:
    shape = r.types[r.node].shape
    count = len(r.arguments["normalized_shape"])
    return {"normalized_shape": [size.coefficient for size in shape[len(shape) - count :]]}


axis_rule(aten("layer_norm.default", "rms_norm.default"), _last_dimensions, literals=_normalized_shape, kind="norm")


# group norm: (g c~), groups outermost, so that whole groups are cut
def _group_norm(op: Op) -> Dims:
    x = op.axes(op["input"])
    groups = op["num_groups"]
    if not isinstance(groups, int):
        return op.give_up("its num_groups are computed, from the size of the batch for instance")
    pieces = factors.split(x[1], [Size(groups), op.type(op["input"]).shape[1] // Size(groups)], op.where)
    if pieces is None:
        op.pin(x[1], "does not divide into groups")
        pieces = [op.pinned(Size(groups))]
    op.memo["groups"] = pieces[0]
    op.mix(*pieces[1:], *x[2:])
    for parameter in (op["weight"], op["bias"]):
        if parameter is not None:
            op.unify(x[1], op.axes(parameter)[0])
    return x


axis_rule(
    aten("group_norm.default"),
    _group_norm,
    literals=lambda r: {"num_groups": r.size(r.memo["groups"]).coefficient} if "groups" in r.memo else {},
    kind="norm",
)


def _weight_norm(op: Op) -> Dims:
    v, g, dim = op.axes(op["v"]), op.axes(op["g"]), op.dim(of=op["v"])
    if len(g) == len(v):
        op.unify(v[dim], g[dim])
    op.mix(*v[:dim], *v[dim + 1 :])
    return v


axis_rule(aten("_weight_norm.default"), _weight_norm)
