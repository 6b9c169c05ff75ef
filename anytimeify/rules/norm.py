"""Normalisations. `c~`: statistics are taken along c, though c passes through."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx, nn

from anytimeify.ir import Size
from anytimeify.ir.schema import bound
from anytimeify.kernels.prefix_norm import PREFIX_GROUP_NORM, PREFIX_NORM, PREFIX_STANDARDISE
from anytimeify.operators.modules import CUMULATIVE, BatchNormCall, FrozenBatchNorm
from anytimeify.rules import factors
from anytimeify.rules.lifting import STATISTICS, WEIGHT_BIAS, Made, Shapes, Values, by_mode, of_tensors
from anytimeify.rules.notation import Notation, parse
from anytimeify.rules.op import Dims, Op, Resize
from anytimeify.rules.prefix_norms import group_of_all, last_dimension, standardised
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


def _batch_norm_module(values: Values, shapes: Shapes) -> Made | None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(shapes.rank)
    if kind is None or (values["weight"] is None) != (values["bias"] is None):
        return None
    affine = values["weight"] is not None
    if not values["training"] and shapes.training:
        return FrozenBatchNorm, {"num_features": shapes.first_size, "eps": values["eps"], "affine": affine}
    return kind, {
        "num_features": shapes.first_size,
        "eps": values["eps"],
        "momentum": None if values["momentum"] == CUMULATIVE else values["momentum"],
        "affine": affine,
        "track_running_stats": values["running_mean"] is not None,
    }


def _batch_norm_call(values: Values, shapes: Shapes) -> Made | None:
    if not values["training"] or values["running_mean"] is None:
        return None
    return BatchNormCall, {"momentum": values["momentum"], "eps": values["eps"]}


def _instance_norm_module(values: Values, shapes: Shapes) -> Made | None:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(shapes.rank)
    if kind is None or not values["use_input_stats"] or (values["weight"] is None) != (values["bias"] is None):
        return None
    return kind, {
        "num_features": shapes.first_size,
        "eps": values["eps"],
        "momentum": values["momentum"],
        "affine": values["weight"] is not None,
        "track_running_stats": values["running_mean"] is not None,
    }


_TENSORS = {**WEIGHT_BIAS, **STATISTICS}
axis_rule(
    aten("instance_norm.default"),
    _instance_norm,
    notation="n c ..., c, c, c, c -> n c ...",
    kind="norm",
    scale="weight",
    shift="bias",
    training="use_input_stats",
    module=of_tensors(_instance_norm_module, _TENSORS),
)
axis_rule(
    aten("batch_norm.default"),
    _batch_norm,
    notation="n~ c ..., c, c, c, c -> n c ...",
    kind="norm",
    scale="weight",
    shift="bias",
    training="training",
    prefix=standardised,
    module=[
        of_tensors(_batch_norm_module, _TENSORS),
        by_mode(_batch_norm_call, "input", "weight", "bias", "running_mean", "running_var"),
    ],
)


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


def _last_line(node: fx.Node) -> Notation:
    names = [f"c{dim}" for dim in range(len(bound(node)["normalized_shape"]))]
    own, mixed = " ".join(names), " ".join(f"{name}~" for name in names)
    return parse(f"... {mixed}, {own}, {own} -> ... {own}")


def _layer_norm_module(values: Values, shapes: Shapes) -> Made | None:
    if values["weight"] is None:
        return None
    return nn.LayerNorm, {
        "normalized_shape": tuple(values["normalized_shape"]),
        "eps": values["eps"],
        "bias": values["bias"] is not None,
    }


def _rms_norm_module(values: Values, shapes: Shapes) -> Made:
    return nn.RMSNorm, {"normalized_shape": tuple(values["normalized_shape"]), "eps": values["eps"]}


for name, shift, centred, module in (
    ("layer_norm.default", "bias", True, of_tensors(_layer_norm_module)),
    ("rms_norm.default", None, False, of_tensors(_rms_norm_module, {"weight": "weight"})),
):
    axis_rule(
        aten(name),
        _last_dimensions,
        literals=_normalized_shape,
        notation=_last_line,
        kind="norm",
        scale="weight",
        shift=shift,
        prefix=partial(last_dimension, centred=centred),
        module=module,
    )


# the norms of all levels of a triangular network, which are fixed
def _prefix_norm(op: Op) -> Dims:
    op.pin(op.axes(op["input"])[-1], "levels of a triangular norm")
    x: Dims = _per_last.infer(op)
    op.mix(x[-1])
    return x


_per_last = build_rule("... c, c, c -> ... c")
axis_rule(
    PREFIX_NORM,
    _prefix_norm,
    notation="... c~, c, c -> ... c",
    kind="norm",
    scale="weight",
    shift="bias",
)


_prefix_per_channel = build_rule("n c ..., c, c -> n c ...")


def _prefix_group_norm(op: Op) -> Dims:
    op.pin(op.axes(op["input"])[1], "levels of a triangular norm")
    x: Dims = _prefix_per_channel.infer(op)
    op.mix(*x[1:])
    return x


axis_rule(
    PREFIX_GROUP_NORM,
    _prefix_group_norm,
    notation="n c~ ..., c, c -> n c ...",
    kind="norm",
    scale="weight",
    shift="bias",
)


def _prefix_standardise(op: Op) -> Dims:
    for dim in (1, 2):
        op.pin(op.axes(op["input"])[dim], "levels of a triangular norm")
    x: Dims = _prefix_per_channel.infer(op)
    op.mix(x[0], x[2])
    return x


axis_rule(
    PREFIX_STANDARDISE,
    _prefix_standardise,
    notation="n~ c i~, c, c -> n c i",
    kind="norm",
    scale="weight",
    shift="bias",
)


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


def _group_norm_module(values: Values, shapes: Shapes) -> Made | None:
    if values["weight"] is None or values["bias"] is None:
        return None
    channels = shapes.sizes["weight"][0]
    return nn.GroupNorm, {"num_groups": values["num_groups"], "num_channels": channels, "eps": values["eps"]}


axis_rule(
    aten("group_norm.default"),
    _group_norm,
    literals=lambda r: {"num_groups": r.size(r.memo["groups"]).coefficient} if "groups" in r.memo else {},
    notation="n c~ ..., c, c -> n c ...",
    kind="norm",
    scale="weight",
    shift="bias",
    groups="num_groups",
    prefix=group_of_all,
    module=of_tensors(_group_norm_module),
)


def _weight_norm(op: Op) -> Dims:
    v, g, dim = op.axes(op["v"]), op.axes(op["g"]), op.dim(of=op["v"])
    if len(g) == len(v):
        op.unify(v[dim], g[dim])
    op.mix(*v[:dim], *v[dim + 1 :])
    return v


axis_rule(aten("_weight_norm.default"), _weight_norm)
