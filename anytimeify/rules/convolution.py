"""Convolutions of one to three dimensions, plain and transposed.

A group is cut whole or not at all: in `(g i)` the groups `g` are outermost, so a narrower grouped convolution has fewer
groups of the same width. A depthwise convolution has `i = 1`, and its groups are its channels.

What a convolution slides along is a position, unless that holds channels: efficient channel attention slides along the
channels of an image's mean. There a narrower network slides along fewer of them, whose order has a meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from anytimeify import factors
from anytimeify.factors import Pin
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import Infer, axis_rule, build_rule
from anytimeify.rules.targets import aten


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


for spatial, out, kernel, name in (
    ("h", "p", "kh", "conv1d"),
    ("h w", "p q", "kh kw", "conv2d"),
    ("h w d", "p q r", "kh kw kd", "conv3d"),
):
    rule, literals, macs, notation = _convolution(spatial, out, kernel)
    axis_rule(
        aten(f"{name}.default", f"{name}.padding"), rule, literals=literals, macs=macs, notation=notation, kind="layer"
    )

# the weight of a transposed convolution is (in, out / groups, ...), and every input position meets the whole kernel
for spatial, out, kernel, names in (
    ("h", "p", "kh", "conv_transpose1d.default"),
    ("h w", "p q", "kh kw", "conv_transpose2d.input"),
    ("h w d", "p q r", "kh kw kd", "conv_transpose3d.input"),
):
    axis_rule(
        aten(names),
        [
            f"n (g i) {spatial}, (g i) o {kernel}, (g o) -> n (g o) {out}",
            f"(g i) {spatial}, (g i) o {kernel}, (g o) -> (g o) {out}",
        ],
        literals={"groups": "g"},
        macs=f"n g o i {spatial} {kernel}",
    )
