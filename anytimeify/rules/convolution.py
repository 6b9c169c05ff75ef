"""Convolutions of one to three dimensions, plain and transposed.

A group is cut whole or not at all: in `(g i)` the groups `g` are outermost, so a narrower grouped convolution has fewer
groups of the same width. A depthwise convolution has `i = 1`, and its groups are its channels.

What a convolution slides along is a position, unless that holds channels: efficient channel attention slides along the
channels of an image's mean. There a narrower network slides along fewer of them, whose order has a meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import fx, nn

from anytimeify import factors
from anytimeify.factors import Pin
from anytimeify.rules.lifting import Made, Shapes, Values, of_tensors
from anytimeify.rules.op import Call, Dims, Op
from anytimeify.rules.table import Infer, axis_rule, build_rule
from anytimeify.rules.targets import aten
from anytimeify.schema import bound


def _along_channels(op: Op, rank: int) -> tuple[bool, ...]:
    """Of every spatial dimension, whether it may hold channels: nothing has pinned it, it keeps its size at any width
    (stride 1, as much padding as the kernel is long), and the convolution reads or gives one channel. With more, the
    dimension is more likely a learned position."""
    shape, weight = op.type(op["input"]).shape, op.type(op["weight"]).shape
    if 1 not in (shape[-1 - rank].coefficient, weight[0].coefficient):
        return (False,) * rank
    stride, dilation, padding = (_spread(op[name], rank) for name in ("stride", "dilation", "padding"))
    return tuple(
        stride[dim] == 1
        and (padding[dim] == "same" or padding[dim] * 2 == dilation[dim] * (weight[2 + dim].coefficient - 1))
        and not factors.is_pinned(op.axes(op["input"])[dim - rank])
        for dim in range(rank)
    )


def _spread(value: Any, rank: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        return [value] * rank
    return [*value] * rank if len(value) == 1 else value


def _convolution(spatial: str, out: str, kernel: str) -> tuple[Infer, Any, Any, Any]:
    """`spatial`, `out` and `kernel` name the dimensions. A dimension that holds channels has one name in both."""
    names = list(zip(spatial.split(), out.split(), strict=True))
    rules = {}
    for channels in product((False, True), repeat=len(names)):
        results = " ".join(name if kept else new for (name, new), kept in zip(names, channels, strict=True))
        rules[channels] = build_rule(
            [
                f"n (g i) {spatial}, (g o) i {kernel}, (g o) -> n (g o) {results}",
                f"(g i) {spatial}, (g o) i {kernel}, (g o) -> (g o) {results}",
            ],
            literals={"groups": "g"},
            macs=f"n g o {results} i {kernel}",
        )
    plain = rules[(False,) * len(names)]

    def infer(op: Op) -> Dims:
        channels = _along_channels(op, len(names))
        result: Dims = rules[channels].infer(op)
        for expr, held in zip(result[-len(names) :], channels, strict=True):
            if held:
                factors.keep_order(expr, Pin("a convolution slides along it", op.where))
                op.mix(expr)
        return result

    return infer, plain.resize, plain.macs, plain.notation


def _triangular(node: fx.Node) -> Call | None:
    """The convolution as our operator slides, a number per dimension; None with groups or without a batch, and where
    the padding is `"same"` and not the same on both sides."""
    given = bound(node)
    weight: list[int] = [size.coefficient for size in given["weight"].meta["type"].shape]
    rank = len(weight) - 2
    if given["groups"] != 1 or len(given["input"].meta["type"].shape) != rank + 2:
        return None
    window = {name: list(_spread(given[name], rank)) for name in ("stride", "dilation")}
    padding = given["padding"]
    if isinstance(padding, str):
        reach = [dilation * (size - 1) for dilation, size in zip(window["dilation"], weight[2:], strict=True)]
        if padding == "same" and any(one % 2 for one in reach):
            return None
        padding = [one // 2 if padding == "same" else 0 for one in reach]
    arguments = {name: given[name] for name in ("input", "weight", "bias")}
    arguments |= {**window, "padding": list(_spread(padding, rank))}
    return Call(torch.ops.anytimeify.triangular_conv.default, arguments)


def _module(kind: type[nn.Module], *, transposed: bool = False) -> Callable[[Values, Shapes], Made]:
    def read(values: Values, shapes: Shapes) -> Made:
        rows, columns, *kernel = shapes.sizes["weight"]
        groups, padding = values["groups"], values["padding"]
        sizes = (rows, columns * groups) if transposed else (columns * groups, rows)
        config = {
            "in_channels": sizes[0],
            "out_channels": sizes[1],
            "kernel_size": tuple(kernel),
            "stride": tuple(_spread(values["stride"], len(kernel))),
            "padding": padding if isinstance(padding, str) else tuple(_spread(padding, len(kernel))),
            "dilation": tuple(_spread(values["dilation"], len(kernel))),
            "groups": groups,
            "bias": values["bias"] is not None,
        }
        if transposed:
            config["output_padding"] = tuple(_spread(values["output_padding"], len(kernel)))
        return kind, config

    return read


for spatial, out, kernel, name, module in (
    ("h", "p", "kh", "conv1d", nn.Conv1d),
    ("h w", "p q", "kh kw", "conv2d", nn.Conv2d),
    ("h w d", "p q r", "kh kw kd", "conv3d", nn.Conv3d),
):
    rule, literals, macs, notation = _convolution(spatial, out, kernel)
    axis_rule(
        aten(f"{name}.default", f"{name}.padding"),
        rule,
        literals=literals,
        macs=macs,
        notation=notation,
        kind="layer",
        bias="bias",
        groups="groups",
        triangular=_triangular,
        module=of_tensors(_module(module)),
    )

# the weight of a transposed convolution is (in, out / groups, ...), and every input position meets the whole kernel
for spatial, out, kernel, name, transposed in (
    ("h", "p", "kh", "conv_transpose1d.default", nn.ConvTranspose1d),
    ("h w", "p q", "kh kw", "conv_transpose2d.input", nn.ConvTranspose2d),
    ("h w d", "p q r", "kh kw kd", "conv_transpose3d.input", nn.ConvTranspose3d),
):
    axis_rule(
        aten(name),
        [
            f"n (g i) {spatial}, (g i) o {kernel}, (g o) -> n (g o) {out}",
            f"(g i) {spatial}, (g i) o {kernel}, (g o) -> (g o) {out}",
        ],
        literals={"groups": "g"},
        macs=f"n g o i {spatial} {kernel}",
        bias="bias",
        groups="groups",
        module=of_tensors(_module(transposed, transposed=True)),
    )
