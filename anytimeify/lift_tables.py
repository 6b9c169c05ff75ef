"""Which `torch.nn` module an operation is: one row per operation, read by `anytimeify.lift`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from anytimeify._torch import OpOverload
from anytimeify.ir import Program
from anytimeify.kernels import TriangularConv, TriangularLinear
from anytimeify.modules import CUMULATIVE, FrozenBatchNorm
from anytimeify.schema import bound

__all__ = ["Call", "Instance", "parametric", "plain"]

aten = torch.ops.aten
Config = tuple[tuple[str, Any], ...]
Values = dict[str, Any]


@dataclass(frozen=True)
class Instance:
    """A module yet to be built: two equal ones are one module."""

    kind: type[nn.Module]
    config: Config = ()
    meta: bool = False  # has tensors, which are replaced: built without memory and without random numbers

    def build(self) -> nn.Module:
        return self.kind(**dict(self.config), **({"device": "meta"} if self.meta else {}))


@dataclass(frozen=True)
class Call:
    """A call of the module at `path`."""

    path: str
    instance: Instance
    args: tuple[Any, ...]


@dataclass(frozen=True)
class _Shapes:
    """Sizes of the tensor arguments of a call, by argument name; `rank` is that of its first argument; `training`
    tells whether the module belongs to a graph that trains."""

    sizes: Mapping[str, tuple[int, ...]]
    rank: int
    training: bool


@dataclass(frozen=True)
class _Row:
    tensors: Mapping[str, str]  # argument of the operation -> attribute of the module
    read: Callable[[Values, _Shapes], tuple[type[nn.Module], dict[str, Any]] | None]
    inputs: tuple[str, ...] = ("input",)


_WEIGHT_BIAS = {"weight": "weight", "bias": "bias"}
_STATISTICS = {"running_mean": "running_mean", "running_var": "running_var"}


def _spread(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * count if len(values) == 1 else values


def _convolution(kind: type[nn.Module]) -> Callable[[Values, _Shapes], tuple[type[nn.Module], dict[str, Any]]]:
    def read(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]]:
        outputs, inputs, *kernel = shapes.sizes["weight"]
        padding = values["padding"]
        return kind, {
            "in_channels": inputs * values["groups"],
            "out_channels": outputs,
            "kernel_size": tuple(kernel),
            "stride": _spread(values["stride"], len(kernel)),
            "padding": padding if isinstance(padding, str) else _spread(padding, len(kernel)),
            "dilation": _spread(values["dilation"], len(kernel)),
            "groups": values["groups"],
            "bias": values["bias"] is not None,
        }

    return read


def _transposed(kind: type[nn.Module]) -> Callable[[Values, _Shapes], tuple[type[nn.Module], dict[str, Any]]]:
    def read(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]]:
        inputs, outputs, *kernel = shapes.sizes["weight"]
        return kind, {
            "in_channels": inputs,
            "out_channels": outputs * values["groups"],
            "kernel_size": tuple(kernel),
            "stride": _spread(values["stride"], len(kernel)),
            "padding": _spread(values["padding"], len(kernel)),
            "output_padding": _spread(values["output_padding"], len(kernel)),
            "dilation": _spread(values["dilation"], len(kernel)),
            "groups": values["groups"],
            "bias": values["bias"] is not None,
        }

    return read


def _linear(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    if len(shapes.sizes["weight"]) != 2:
        return None
    outputs, inputs = shapes.sizes["weight"]
    return nn.Linear, {"in_features": inputs, "out_features": outputs, "bias": values["bias"] is not None}


def _triangular_conv(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]]:
    outputs, inputs, *kernel = shapes.sizes["weight"]
    window = {name: tuple(values[name]) for name in ("stride", "padding", "dilation")}
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": tuple(kernel)}
    return TriangularConv, {**sizes, **_levels(values), **window}


def _triangular_linear(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]]:
    outputs, inputs = shapes.sizes["weight"]
    return TriangularLinear, {"in_features": inputs, "out_features": outputs, **_levels(values)}


def _levels(values: Values) -> dict[str, Any]:
    ends = {name: tuple(values[name]) for name in ("rows", "columns")}
    return {**ends, "levels": values["levels"], "bias": values["bias"] is not None}


def _batch_norm(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(shapes.rank)
    if kind is None or (values["weight"] is None) != (values["bias"] is None):
        return None
    if not values["training"] and shapes.training:
        affine = values["weight"] is not None
        return FrozenBatchNorm, {"num_features": _first_size(shapes), "eps": values["eps"], "affine": affine}
    return kind, {
        "num_features": _first_size(shapes),
        "eps": values["eps"],
        "momentum": None if values["momentum"] == CUMULATIVE else values["momentum"],
        "affine": values["weight"] is not None,
        "track_running_stats": values["running_mean"] is not None,
    }


def _instance_norm(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(shapes.rank)
    if kind is None or not values["use_input_stats"] or (values["weight"] is None) != (values["bias"] is None):
        return None
    return kind, {
        "num_features": _first_size(shapes),
        "eps": values["eps"],
        "momentum": values["momentum"],
        "affine": values["weight"] is not None,
        "track_running_stats": values["running_mean"] is not None,
    }


def _first_size(shapes: _Shapes) -> int:
    return next(iter(shapes.sizes.values()))[0]


def _layer_norm(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    if values["weight"] is None:
        return None
    return nn.LayerNorm, {
        "normalized_shape": tuple(values["normalized_shape"]),
        "eps": values["eps"],
        "bias": values["bias"] is not None,
    }


def _rms_norm(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    return nn.RMSNorm, {"normalized_shape": tuple(values["normalized_shape"]), "eps": values["eps"]}


def _group_norm(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    if values["weight"] is None or values["bias"] is None:
        return None
    channels = shapes.sizes["weight"][0]
    return nn.GroupNorm, {"num_groups": values["num_groups"], "num_channels": channels, "eps": values["eps"]}


def _embedding(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    count, width = shapes.sizes["weight"]
    padding = values["padding_idx"]
    return nn.Embedding, {
        "num_embeddings": count,
        "embedding_dim": width,
        "padding_idx": None if padding < 0 else padding,
        "scale_grad_by_freq": values["scale_grad_by_freq"],
        "sparse": values["sparse"],
    }


def _prelu(values: Values, shapes: _Shapes) -> tuple[type[nn.Module], dict[str, Any]] | None:
    size = shapes.sizes["weight"]
    return (nn.PReLU, {"num_parameters": size[0]}) if len(size) == 1 else None


_PARAMETRIC: dict[object, _Row] = {
    aten.conv1d.default: _Row(_WEIGHT_BIAS, _convolution(nn.Conv1d)),
    aten.conv2d.default: _Row(_WEIGHT_BIAS, _convolution(nn.Conv2d)),
    aten.conv3d.default: _Row(_WEIGHT_BIAS, _convolution(nn.Conv3d)),
    aten.conv1d.padding: _Row(_WEIGHT_BIAS, _convolution(nn.Conv1d)),
    aten.conv2d.padding: _Row(_WEIGHT_BIAS, _convolution(nn.Conv2d)),
    aten.conv3d.padding: _Row(_WEIGHT_BIAS, _convolution(nn.Conv3d)),
    aten.conv_transpose1d.default: _Row(_WEIGHT_BIAS, _transposed(nn.ConvTranspose1d)),
    aten.conv_transpose2d.input: _Row(_WEIGHT_BIAS, _transposed(nn.ConvTranspose2d)),
    aten.conv_transpose3d.input: _Row(_WEIGHT_BIAS, _transposed(nn.ConvTranspose3d)),
    aten.linear.default: _Row(_WEIGHT_BIAS, _linear),
    torch.ops.anytimeify.triangular_conv.default: _Row(_WEIGHT_BIAS, _triangular_conv),
    torch.ops.anytimeify.triangular_linear.default: _Row(_WEIGHT_BIAS, _triangular_linear),
    aten.batch_norm.default: _Row({**_WEIGHT_BIAS, **_STATISTICS}, _batch_norm),
    aten.instance_norm.default: _Row({**_WEIGHT_BIAS, **_STATISTICS}, _instance_norm),
    aten.layer_norm.default: _Row(_WEIGHT_BIAS, _layer_norm),
    aten.group_norm.default: _Row(_WEIGHT_BIAS, _group_norm),
    aten.rms_norm.default: _Row({"weight": "weight"}, _rms_norm),
    aten.embedding.default: _Row({"weight": "weight"}, _embedding, ("indices",)),
    aten.prelu.default: _Row({"weight": "weight"}, _prelu, ("self",)),
}


def parametric(program: Program, node: fx.Node, *, training: bool) -> Call | None:
    """The module with tensors that computes `node`, if its tensors are all those of one path."""
    row = _PARAMETRIC.get(node.target)
    if row is None:
        return None
    values = bound(node)
    given = {name: values[name] for name in row.tensors if values[name] is not None}
    if not given or not all(isinstance(reader, fx.Node) and reader.op == "get_attr" for reader in given.values()):
        return None
    path = _common_path(program, {row.tensors[name]: str(reader.target) for name, reader in given.items()}, node)
    if not path or _has_nodes(
        value for name, value in values.items() if name not in row.tensors and name not in row.inputs
    ):
        return None
    sizes = {name: tuple(program.tensors[str(reader.target)].shape) for name, reader in given.items()}
    first = values[row.inputs[0]]
    found = row.read(values, _Shapes(sizes, len(first.meta["type"].shape), training))
    if found is None:
        return None
    kind, config = found
    return Call(path, Instance(kind, tuple(config.items()), meta=True), tuple(values[name] for name in row.inputs))


def _common_path(program: Program, targets: Mapping[str, str], node: fx.Node) -> str | None:
    """The path whose attributes are these tensors; tied tensors have several names, any of which may give it."""
    candidates = [*(target.rpartition(".")[0] for target in targets.values()), str(node.meta["origin"].module_path)]
    for path in dict.fromkeys(candidates):
        if all(program.tensors.get(f"{path}.{name}") is program.tensors[target] for name, target in targets.items()):
            return path
    return None


def _has_nodes(values: Iterator[Any]) -> bool:
    found: list[fx.Node] = []
    for value in values:
        fx.map_arg(value, found.append)
    return bool(found)


# Modules without tensors, by operation: (name of the class that the node must come from, how it is built).
# An operation alone does not tell its module: ReLU6 and Hardtanh are both `hardtanh`.
_Plain = tuple[type[nn.Module], Callable[[Values], dict[str, Any] | None]]


def _nothing(values: Values) -> dict[str, Any]:
    return {}


def _take(**names: str) -> Callable[[Values], dict[str, Any] | None]:
    return lambda values: {attribute: _plain_value(values[argument]) for attribute, argument in names.items()}


def _plain_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _elu(values: Values) -> dict[str, Any] | None:
    return {"alpha": values["alpha"]} if values["scale"] == 1 and values["input_scale"] == 1 else None


def _pool(*more: str) -> Callable[[Values], dict[str, Any] | None]:
    def read(values: Values) -> dict[str, Any] | None:
        stride = _plain_value(values["stride"])
        config = {"kernel_size": _plain_value(values["kernel_size"]), "stride": stride or None}
        return {**config, **{name: _plain_value(values[name]) for name in ("padding", "ceil_mode", *more)}}

    return read


def _softmax(values: Values) -> dict[str, Any] | None:
    return {"dim": values["dim"]} if values["dtype"] is None else None


def _relu6(values: Values) -> dict[str, Any] | None:
    return {} if (values["min_val"], values["max_val"]) == (0, 6) else None


_PLAIN: dict[object, tuple[_Plain, ...]] = {
    aten.relu.default: ((nn.ReLU, _nothing),),
    aten.relu6.default: ((nn.ReLU6, _nothing),),
    aten.hardtanh.default: ((nn.ReLU6, _relu6), (nn.Hardtanh, _take(min_val="min_val", max_val="max_val"))),
    aten.gelu.default: ((nn.GELU, _take(approximate="approximate")),),
    aten.silu.default: ((nn.SiLU, _nothing),),
    aten.mish.default: ((nn.Mish, _nothing),),
    aten.selu.default: ((nn.SELU, _nothing),),
    aten.tanh.default: ((nn.Tanh, _nothing),),
    aten.sigmoid.default: ((nn.Sigmoid, _nothing),),
    aten.hardswish.default: ((nn.Hardswish, _nothing),),
    aten.hardsigmoid.default: ((nn.Hardsigmoid, _nothing),),
    aten.log_sigmoid.default: ((nn.LogSigmoid, _nothing),),
    aten.leaky_relu.default: ((nn.LeakyReLU, _take(negative_slope="negative_slope")),),
    aten.elu.default: ((nn.ELU, _elu),),
    aten.celu.default: ((nn.CELU, _take(alpha="alpha")),),
    aten.softplus.default: ((nn.Softplus, _take(beta="beta", threshold="threshold")),),
    aten.hardshrink.default: ((nn.Hardshrink, _take(lambd="lambd")),),
    aten.softshrink.default: ((nn.Softshrink, _take(lambd="lambd")),),
    aten.threshold.default: ((nn.Threshold, _take(threshold="threshold", value="value")),),
    aten.glu.default: ((nn.GLU, _take(dim="dim")),),
    aten.softmax.int: ((nn.Softmax, _softmax),),
    aten.log_softmax.int: ((nn.LogSoftmax, _softmax),),
    aten.max_pool1d.default: ((nn.MaxPool1d, _pool("dilation")),),
    aten.max_pool2d.default: ((nn.MaxPool2d, _pool("dilation")),),
    aten.max_pool3d.default: ((nn.MaxPool3d, _pool("dilation")),),
    aten.avg_pool1d.default: ((nn.AvgPool1d, _pool("count_include_pad")),),
    aten.avg_pool2d.default: ((nn.AvgPool2d, _pool("count_include_pad", "divisor_override")),),
    aten.avg_pool3d.default: ((nn.AvgPool3d, _pool("count_include_pad", "divisor_override")),),
    aten.adaptive_avg_pool1d.default: ((nn.AdaptiveAvgPool1d, _take(output_size="output_size")),),
    aten.adaptive_avg_pool2d.default: ((nn.AdaptiveAvgPool2d, _take(output_size="output_size")),),
    aten.adaptive_avg_pool3d.default: ((nn.AdaptiveAvgPool3d, _take(output_size="output_size")),),
    aten.flatten.using_ints: ((nn.Flatten, _take(start_dim="start_dim", end_dim="end_dim")),),
    aten.pixel_shuffle.default: ((nn.PixelShuffle, _take(upscale_factor="upscale_factor")),),
    aten.pixel_unshuffle.default: ((nn.PixelUnshuffle, _take(downscale_factor="downscale_factor")),),
}


def plain(node: fx.Node) -> Call | None:
    """The module without tensors that `node` came out of."""
    rows = _PLAIN.get(node.target)
    origin = node.meta.get("origin")
    if rows is None or origin is None or not origin.module_path or not origin.module_class.startswith("torch.nn."):
        return None
    assert isinstance(node.target, OpOverload)
    values = bound(node)
    name = next(iter(values))
    for kind, read in rows:
        if origin.module_class != f"{kind.__module__}.{kind.__qualname__}" or _has_nodes(
            value for key, value in values.items() if key != name
        ):
            continue
        config = read(values)
        if config is not None:
            return Call(origin.module_path, Instance(kind, tuple(config.items())), (values[name],))
    return None
