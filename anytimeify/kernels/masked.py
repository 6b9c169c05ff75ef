"""Triangular layers as dense ones of torch, whose weight is multiplied with a mask.

Nothing here but operations of torch: autograd differentiates them without Python, and compilers fuse the product with
the cast of autocast. One more operation in the forward pass and one in the backward pass, which keeps the gradient
of what the weight has not zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from anytimeify._torch import is_plain
from anytimeify.kernels.products import Window
from anytimeify.kernels.staircase import Interval, Staircase

__all__ = ["computed_in", "conv", "dense_conv", "linear", "mask"]

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, window: Window) -> Tensor:
    """The convolution with the masked weight, differentiable."""
    made = _masked(weight, shape, x.device.type)
    return dense_conv(x, made, bias, window.stride, window.padding, window.dilation)


def dense_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The convolution of torch of as many dimensions."""
    return _CONVOLUTIONS[len(stride) - 1](x, weight, bias, stride, padding, dilation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase) -> Tensor:
    """The linear layer with the masked weight, differentiable."""
    return F.linear(x, _masked(weight, shape, x.device.type), bias)


def _masked(weight: Tensor, shape: Staircase, device: str) -> Tensor:
    if not shape.holes:
        return weight
    weight = weight.to(computed_in(weight, device))  # as the layer would; what is short is masked faster
    return weight * mask(shape, weight)


def computed_in(weight: Tensor, device: str) -> torch.dtype:
    """The type of numbers that a layer on a device computes with."""
    if device != "meta" and torch.is_autocast_enabled(device) and weight.dtype is torch.float32:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def mask(shape: Staircase, weight: Tensor) -> Tensor:
    """What a weight is multiplied with: ones and zeros of its type, (rows, columns, 1, ...).

    One tensor for all layers of a shape; a compiler sees how it is made, and makes it where it is read."""
    rank = weight.dim()
    if is_plain(weight):
        return _known(shape, rank, weight.dtype, weight.device)
    return _made(shape, rank, weight.dtype, weight.device)


@cache
def _known(shape: Staircase, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _made(shape, rank, dtype, device)


def _made(shape: Staircase, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = _levels(shape.rows, shape.empty_rows, -1, shape.height, device)
    columns = _levels(shape.columns, shape.empty_columns, shape.levels, shape.width, device)
    keep = columns[None, :] <= rows[:, None]
    return keep.to(dtype).view(shape.height, shape.width, *[1] * (rank - 2))


def _levels(
    levels: Iterable[Iterable[Interval]], empty: Iterable[Interval], other: int, size: int, device: torch.device
) -> Tensor:
    """The level of every row or column, `other` where there is none: by comparisons, so that no table is copied to a
    device."""
    starts = [(start, level) for level, own in enumerate(levels) for start, _ in own]
    starts += [(start, other) for start, _ in empty]
    place = torch.arange(size, device=device)
    result = torch.full_like(place, min(starts)[1] if starts else other)
    for (_, before), (start, level) in pairwise(sorted(starts)):
        result = result + (place >= start) * (level - before)
    return result
