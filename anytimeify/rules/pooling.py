"""Pooling, padding, resizing, and the shuffles between channels and space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from anytimeify import factors
from anytimeify.factors import Expr
from anytimeify.ir import Size
from anytimeify.rules.lifting import Lifting, Values, plain, plain_value, take
from anytimeify.rules.op import Dims, Op, Resize
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


def _window(*more: str) -> Callable[[Values], dict[str, Any] | None]:
    def read(values: Values) -> dict[str, Any]:
        stride = plain_value(values["stride"])
        config = {"kernel_size": plain_value(values["kernel_size"]), "stride": stride or None}
        return {**config, **{name: plain_value(values[name]) for name in ("padding", "ceil_mode", *more)}}

    return read


AVERAGE = ("count_include_pad", "divisor_override")
MODULES: dict[str, Lifting] = {
    "max_pool1d": plain(nn.MaxPool1d, _window("dilation")),
    "max_pool2d": plain(nn.MaxPool2d, _window("dilation")),
    "max_pool3d": plain(nn.MaxPool3d, _window("dilation")),
    "avg_pool1d": plain(nn.AvgPool1d, _window("count_include_pad")),
    "avg_pool2d": plain(nn.AvgPool2d, _window(*AVERAGE)),
    "avg_pool3d": plain(nn.AvgPool3d, _window(*AVERAGE)),
    "adaptive_avg_pool1d": plain(nn.AdaptiveAvgPool1d, take(output_size="output_size")),
    "adaptive_avg_pool2d": plain(nn.AdaptiveAvgPool2d, take(output_size="output_size")),
    "adaptive_avg_pool3d": plain(nn.AdaptiveAvgPool3d, take(output_size="output_size")),
}
for spatial, out, names in (
    ("h", "p", "max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d"),
    (
        "h w",
        "p q",
        "max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d "
        "upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d",
    ),
    (
        "h w d",
        "p q r",
        "max_pool3d avg_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d upsample_nearest3d upsample_trilinear3d",
    ),
):
    for name in names.split():
        lines = [f"n c {spatial} -> n c {out}", f"c {spatial} -> c {out}"]
        axis_rule(aten(name), lines, kind="pooling", module=MODULES.get(name, ()))
for spatial, out, names in (
    ("h", "p", "max_pool1d_with_indices adaptive_max_pool1d"),
    ("h w", "p q", "max_pool2d_with_indices adaptive_max_pool2d"),
    ("h w d", "p q r", "max_pool3d_with_indices adaptive_max_pool3d"),
):
    lines = [f"n c {spatial} -> n c {out}, n c {out}", f"c {spatial} -> c {out}, c {out}"]
    axis_rule(aten(*names.split()), lines, kind="pooling")


axis_rule(aten("grid_sampler.default", "grid_sampler_2d.default"), "n c h w, n p q xy -> n c p q")
axis_rule(aten("grid_sampler_3d.default"), "n c h w d, n p q r xyz -> n c p q r")


# Zero padding along channels is a concatenation with constant parts that grow and shrink with the widths; along
# anything else it makes another position.
def _pad(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    sizes, pads = op.type(op["self"]).shape, list(op["pad"])
    op.memo["pads"] = {}
    for index in range(len(pads) // 2):
        dim = len(x) - 1 - index
        before, after = pads[2 * index : 2 * index + 2]
        if before == 0 and after == 0:
            continue
        if _is_channel_padding(op, x[dim], before, after):
            parts = [op.open(Size(pad), free=True) if pad else None for pad in (before, after)]
            op.memo["pads"][index] = parts
            x[dim] = factors.resolve(factors.Sum(tuple(p for p in (parts[0], x[dim], parts[1]) if p is not None)))
        elif sizes[dim] != op.type().shape[dim] or before or after:
            op.pin(x[dim], "padded", "position")
            x[dim] = op.pinned(op.type().shape[dim], "padded", "position")
    return tuple(x)


def _is_channel_padding(op: Op, expr: Expr, before: Any, after: Any) -> bool:
    constant = str(op["mode"] or "constant") == "constant" and not op["value"]
    growing = isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
    return constant and growing and not factors.is_pinned(expr)


def _pads(r: Resize) -> dict[str, Any]:
    pads = list(r.arguments["pad"])
    for index, (before, after) in r.memo["pads"].items():
        pads[2 * index] = r.size(before).coefficient if before is not None else 0
        pads[2 * index + 1] = r.size(after).coefficient if after is not None else 0
    return {"pad": pads}


axis_rule(aten("pad.default", "constant_pad_nd.default"), _pad, literals=_pads, kind="padding")


def _pad_positions(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    for index in range(len(op["padding"]) // 2):
        dim = len(x) - 1 - index
        op.pin(x[dim], "padded", "position")
        x[dim] = op.pinned(op.type().shape[dim], "padded", "position")
    return tuple(x)


axis_rule(
    aten(*(f"{kind}_pad{n}d.default" for kind in ("reflection", "replication") for n in (1, 2, 3))),
    _pad_positions,
    kind="padding",
)


# (c r s) h w -> c (h r) (w s), and back
def _pixel_shuffle(op: Op) -> Dims:
    *rest, c, h, w = op.axes(op["self"])
    r = Size(int(op["upscale_factor"]))
    pieces = factors.split(c, [op.type().shape[-3], r, r], op.where)
    if pieces is None:
        return op.give_up("channels do not divide by the upscale factor")
    op.pin(pieces[1], "becomes a position", "position")
    op.pin(pieces[2], "becomes a position", "position")
    return (*rest, pieces[0], factors.product([h, pieces[1]]), factors.product([w, pieces[2]]))


def _pixel_unshuffle(op: Op) -> Dims:
    *rest, c, h, w = op.axes(op["self"])
    op.pin(h, "a position", "position")
    op.pin(w, "a position", "position")
    r = op.pinned(Size(int(op["downscale_factor"])), "was a position")
    *_, p, q = op.type().shape
    return (*rest, factors.product([c, r, r]), op.pinned(p, kind="position"), op.pinned(q, kind="position"))


axis_rule(
    aten("pixel_shuffle.default"),
    _pixel_shuffle,
    module=plain(nn.PixelShuffle, take(upscale_factor="upscale_factor")),
)
axis_rule(
    aten("pixel_unshuffle.default"),
    _pixel_unshuffle,
    module=plain(nn.PixelUnshuffle, take(downscale_factor="downscale_factor")),
)


# (g c) -> (c g): the groups keep their number, the channels inside them are cut
def _channel_shuffle(op: Op) -> Dims:
    x = op.axes(op["self"])
    groups = Size(int(op["groups"]))
    pieces = factors.split(x[1], [groups, op.type().shape[1] // groups], op.where)
    if pieces is None:
        return op.give_up("channels do not divide into the groups")
    return (x[0], factors.product([pieces[1], pieces[0]]), *x[2:])


axis_rule(aten("channel_shuffle.default", "native_channel_shuffle.default"), _channel_shuffle)


# sliding windows: channels times kernel positions
def _im2col(op: Op) -> Dims:
    x, shape = op.axes(op["self"]), op.type().shape
    n, c, positions = ((x[0],) if len(shape) == 3 else ()), x[-3], op.pinned(shape[-1], "a position", "position")
    kernel = op.pinned(shape[-2] // op.type(op["self"]).shape[-3], "a kernel position", "position")
    for expr in x[-2:]:
        op.pin(expr, "a position", "position")
    return (*n, factors.product([c, kernel]), positions)


def _col2im(op: Op) -> Dims:
    x, shape = op.axes(op["self"]), op.type().shape
    channels = shape[-3]
    pieces = factors.split(x[-2], [channels, op.type(op["self"]).shape[-2] // channels], op.where)
    if pieces is None:
        return op.give_up("channels do not divide by the kernel")
    op.pin(pieces[1], "a kernel position", "position")
    op.pin(x[-1], "a position", "position")
    return (*x[:-2], pieces[0], op.pinned(shape[-2], kind="position"), op.pinned(shape[-1], kind="position"))


axis_rule(aten("im2col.default"), _im2col)
axis_rule(aten("col2im.default"), _col2im)


def _unfold(op: Op) -> Dims:
    x = list(op.axes(op["self"]))
    dim = op.dim("dimension")
    op.pin(x[dim], "read in windows", "position")
    shape = op.type().shape
    x[dim] = op.pinned(shape[dim], "windows", "position")
    return (*x, op.pinned(shape[-1], "a window position", "position"))


axis_rule(aten("unfold.default"), _unfold)
