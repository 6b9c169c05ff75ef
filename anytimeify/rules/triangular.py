"""Triangular layers: a block of rows reads a prefix of the columns. Their levels are fixed, so their axes are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Size
from anytimeify.ir.schema import bound
from anytimeify.kernels import TriangularConv, TriangularLinear, staircase
from anytimeify.rules.lifting import Made, Shapes, Values, of_tensors
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import Infer, axis_rule, build_rule


def _fixed(line: str) -> Infer:
    plain = build_rule(line)

    def infer(op: Op) -> Dims:
        for value, dim in (("weight", 0), ("weight", 1)):
            op.pin(op.axes(op[value])[dim], "levels of a triangular layer")
        result: Dims = plain.infer(op)
        return result

    return infer


def _macs(node: fx.Node) -> Size:
    """Every element of the weight that exists meets every position of the result."""
    values: dict[str, Any] = bound(node)
    weight, result = values["weight"].meta["type"].shape, node.meta["type"].shape
    height, width = weight[0].coefficient, weight[1].coefficient
    shape = staircase(height, width, tuple(values["rows"]), tuple(values["columns"]), values["levels"])
    positions = (result[0], *result[2:]) if len(weight) > 2 else result[:-1]
    return math.prod((*positions, *weight[2:]), start=Size(shape.kept))


_CONVOLUTIONS = {
    3: "n i h, o i kh, o -> n o p",
    4: "n i h w, o i kh kw, o -> n o p q",
    5: "n i h w d, o i kh kw kd, o -> n o p q r",
}


def _convolution(op: Op) -> Dims:
    return _BY_RANK[op.rank(op["input"])](op)  # type: ignore[no-any-return]  # as every Infer of one result


_BY_RANK = {rank: _fixed(line) for rank, line in _CONVOLUTIONS.items()}


def _conv_module(values: Values, shapes: Shapes) -> Made:
    outputs, inputs, *kernel = shapes.sizes["weight"]
    window = {name: tuple(values[name]) for name in ("stride", "padding", "dilation")}
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": tuple(kernel)}
    return TriangularConv, {**sizes, **_levels(values), **window}


def _linear_module(values: Values, shapes: Shapes) -> Made:
    outputs, inputs = shapes.sizes["weight"]
    return TriangularLinear, {"in_features": inputs, "out_features": outputs, **_levels(values)}


def _levels(values: Values) -> dict[str, Any]:
    ends = {name: tuple(values[name]) for name in ("rows", "columns")}
    return {**ends, "levels": values["levels"], "bias": values["bias"] is not None}


_LINEAR = "... i, o i, o -> ... o"
axis_rule(
    torch.ops.anytimeify.triangular_conv.default,
    _convolution,
    macs=_macs,
    notation=list(_CONVOLUTIONS.values()),
    kind="layer",
    module=of_tensors(_conv_module),
)
axis_rule(
    torch.ops.anytimeify.triangular_linear.default,
    _fixed(_LINEAR),
    macs=_macs,
    notation=_LINEAR,
    kind="layer",
    module=of_tensors(_linear_module),
)
