"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.padding import padded
from anytimeify.capture.sources.onnx.table import NotReadError, Row

__all__ = ["ROWS"]

Function = Callable[..., Tensor]


def _of_rank(functions: Sequence[Function], x: Tensor) -> Function:
    """The function for 1, 2 or 3 axes after the batch and the channels."""
    if not 3 <= x.dim() <= 5:
        raise NotReadError(f"it is given a tensor of {x.dim()} axes; 3, 4 and 5 are read")
    return functions[x.dim() - 3]


def _paddings(
    x: Tensor,
    auto_pad: str,
    pads: Sequence[int] | None,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """How much is put before and behind every axis after the channels."""
    count = len(kernel)
    if auto_pad in ("NOTSET", ""):
        own = list(pads) if pads is not None else [0] * 2 * count
        return own[:count], own[count:]
    if auto_pad == "VALID":
        return [0] * count, [0] * count
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        before.append(less if auto_pad == "SAME_UPPER" else more)
        after.append(more if auto_pad == "SAME_UPPER" else less)
    return before, after


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    function = _of_rank((F.conv1d, F.conv2d, F.conv3d), x)
    count = x.dim() - 2
    strides, dilations = strides or [1] * count, dilations or [1] * count
    before, after = _paddings(x, auto_pad, pads, weight.shape[2:], strides, dilations)
    if before != after:
        x, before = padded(x, [0, 0, *before], [0, 0, *after], "constant", 0), [0] * count
    return function(x, weight, bias, strides, before, dilations, group)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """`pads` crop the result; where they are not the same on both sides it is cropped afterwards."""
    function: Function = _of_rank((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), x)
    count = x.dim() - 2
    strides, dilations = strides or [1] * count, dilations or [1] * count
    extra = output_padding or [0] * count
    own = list(pads) if pads is not None else [0] * 2 * count
    before, after = own[:count], own[count:]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        for axis in range(count):
            full = (x.shape[2 + axis] - 1) * strides[axis] + (weight.shape[2 + axis] - 1) * dilations[axis] + 1
            total = full + extra[axis] - wanted[axis]
            less, more = total // 2, total - total // 2
            before[axis], after[axis] = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    common = [max(0, min(one, two)) for one, two in zip(before, after, strict=True)]
    if any(size >= max(stride, dilation) for size, stride, dilation in zip(extra, strides, dilations, strict=True)):
        raise NotReadError("its output_padding is not smaller than its stride")
    result = function(x, weight, bias, strides, common, extra, group, dilations)
    rest = [-(one - less) for one, less in zip(before, common, strict=True)]
    behind = [-(two - less) for two, less in zip(after, common, strict=True)]
    return padded(result, [0, 0, *rest], [0, 0, *behind], "constant", 0)


# Pooling.


def _max_pool(
    x: Tensor,
    *,
    outputs: int,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> Tensor:
    if outputs > 1:
        raise NotReadError("the places of its maxima are read")
    function: Function = _of_rank((F.max_pool1d, F.max_pool2d, F.max_pool3d), x)
    count = len(kernel_shape)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    before, after = _paddings(x, auto_pad, pads, kernel_shape, strides, dilations)
    fits = all(2 * pad <= width for pad, width in zip(before, kernel_shape, strict=True))
    if before != after or not fits:
        least = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, before = padded(x, [0, 0, *before], [0, 0, *after], "constant", least), [0] * count
    return function(x, kernel_shape, strides, before, dilations, bool(ceil_mode))


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    count = len(kernel_shape)
    strides = strides or [1] * count
    if dilations is not None and set(dilations) != {1}:
        raise NotReadError("it has dilations")
    before, after = _paddings(x, auto_pad, pads, kernel_shape, strides, [1] * count)
    function: Function = _of_rank((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), x)
    fits = all(2 * pad <= width for pad, width in zip(before, kernel_shape, strict=True))
    if before == after and fits:
        return function(x, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad))
    pool = [0, 0, *before], [0, 0, *after], "constant", 0
    sums = function(padded(x, *pool), kernel_shape, strides, 0, bool(ceil_mode))
    if count_include_pad:
        return sums
    inside = function(padded(torch.ones_like(x[:1, :1]), *pool), kernel_shape, strides, 0, bool(ceil_mode))
    return sums / inside


def _lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    powers = x.abs().pow(p)
    means = _average_pool(
        powers,
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=1,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    return (means * math.prod(kernel_shape)).pow(1 / p)


def _global_average_pool(x: Tensor) -> Tensor:
    function: Any = _of_rank((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), x)
    return function(x, 1)  # type: ignore[no-any-return]  # of three functions of torch


def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), True)


def _global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return x.abs().pow(p).sum(list(range(2, x.dim())), True).pow(1 / p)


ROWS = (
    Row("Conv", 1, _conv),
    Row("ConvTranspose", 1, _conv_transpose),
    Row("MaxPool", 8, _max_pool),
    Row("AveragePool", 7, _average_pool),
    Row("LpPool", 2, _lp_pool),
    Row("GlobalAveragePool", 1, _global_average_pool),
    Row("GlobalMaxPool", 1, _global_max_pool),
    Row("GlobalLpPool", 2, _global_lp_pool),
)
