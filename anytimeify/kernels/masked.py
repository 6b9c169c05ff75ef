"""Triangular layers as dense ones of torch, whose weight is multiplied with a mask.

Nothing here but operations of torch: autograd differentiates them without Python, and compilers fuse the product with
the cast of autocast. One more operation in the forward pass and one in the backward pass, which keeps the gradient
of what the weight has not zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from anytimeify._torch import is_plain
from anytimeify.kernels.products import Window
from anytimeify.kernels.staircase import Interval, Staircase

__all__ = ["conv", "linear", "mask"]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, window: Window) -> Tensor:
    """The convolution with the masked weight, differentiable."""
    layer = (F.conv1d, F.conv2d, F.conv3d)[len(window.stride) - 1]
    return layer(x, _masked(weight, shape, x.device.type), bias, window.stride, window.padding, window.dilation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase) -> Tensor:
    """The linear layer with the masked weight, differentiable."""
    return F.linear(x, _masked(weight, shape, x.device.type), bias)


def _masked(weight: Tensor, shape: Staircase, device: str) -> Tensor:
    if not shape.holes:
        return weight
    if device != "meta" and torch.is_autocast_enabled(device) and weight.dtype is torch.float32:
        weight = weight.to(torch.get_autocast_dtype(device))  # as the layer would; what is short is masked faster
    return weight * mask(shape, weight)


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
