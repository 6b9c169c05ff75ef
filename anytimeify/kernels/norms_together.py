"""Norms of all levels by operations of torch, and their gradients by hand: kernels for group norms and batch norms,
whose groups or channels are the chunks of every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Normed", "gradients", "is_regular", "norm", "scaled"]

aten = torch.ops.aten
_MOST = 4  # pieces per level, on average


class Normed(NamedTuple):
    """The norm of rows, and the statistics of every row and level, (rows, levels)."""

    y: Tensor
    means: Tensor
    variances: Tensor  # with eps


def is_regular(ends: Sequence[int]) -> bool:
    """Whether chunks with these ends consist of few pieces of one size, so that they are taken together."""
    return ends[-1] // math.gcd(*ends) <= _MOST * len(ends)


def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """With the weight and bias of every channel."""
    if weight is None:
        return x
    return x * weight if bias is None else torch.addcmul(bias, x, weight)


class _Pieces(NamedTuple):
    """Numbers for each of the pieces of one size that chunks consist of, and for each level."""

    size: int  # channels of a piece
    share: Tensor  # of a piece in the mean of the pieces up to it
    update: Tensor  # what its distance from that mean adds
    per_channel: Tensor  # one over the channels that its level reads, negative
    level: Tensor | None  # of every piece; None where every level is one piece
    first: Tensor | None  # the first piece of the level
    last: Tensor | None  # the last piece of every level

    def of_levels(self, values: Tensor) -> Tensor:
        """From a value up to every piece to that of every level."""
        return values if self.last is None else values.index_select(1, self.last)

    def of_pieces(self, values: Tensor) -> Tensor:
        """From a value of every level to those of its pieces."""
        return values if self.level is None else values.index_select(1, self.level)


@cache
def _pieces(ends: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Pieces:
    size = math.gcd(*ends)
    counts = [end // size for end in ends]
    levels = [next(level for level, count in enumerate(counts) if piece < count) for piece in range(counts[-1])]
    many = range(1, counts[-1] + 1)

    def table(values: Sequence[float], dtype: torch.dtype = dtype) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(values, dtype=dtype, device=device)

    def places(values: Sequence[int]) -> Tensor | None:
        return table(values, torch.int64) if len(counts) < counts[-1] else None

    return _Pieces(
        size,
        table([1 / count for count in many]),
        table([0.0, *(count / (count - 1) for count in many[1:])]),
        table([-1 / ends[level] for level in levels]),
        places(levels),
        places([(0, *counts)[level] for level in levels]),
        places([count - 1 for count in counts]),
    )


def norm(
    x: Tensor, ends: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Normed:
    """Of rows of full precision, contiguous."""
    pieces = _pieces(ends, x.dtype, x.device)
    count = ends[-1] // pieces.size
    _, mean, scale = aten.native_group_norm(x, None, None, x.numel() // ends[-1], ends[-1], 1, count, eps)
    variance = scale.pow_(-2)
    if centred:
        means = mean.cumsum(1).mul_(pieces.share)
        distance = mean.sub_(means)
        variance.addcmul_(distance, distance * pieces.update)
        means = pieces.of_levels(means)
    else:
        variance.addcmul_(mean, mean)
        means = variance.new_zeros(len(variance), len(ends))
    variances = pieces.of_levels(variance.cumsum(1).mul_(pieces.share))
    normed = _normalised(x, pieces, means, variances)
    return Normed(scaled(normed.view(x.shape), weight, bias), means, variances)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, means: Tensor, variances: Tensor,
    ends: tuple[int, ...], centred: bool, wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Of input, weight and bias, where wanted."""
    pieces = _pieces(ends, x.dtype, x.device)
    to_x = to_weight = to_bias = None
    if wanted[0]:
        given = grad if weight is None else grad * weight
        to_x = _input_gradient(given, x, pieces, pieces.of_pieces(means), pieces.of_pieces(variances), centred)
    if any(wanted[1:]):
        normed = _normalised(x, pieces, means, variances)
        to_weight, to_bias = _scale_gradients(grad, normed.view(-1, ends[-1]), weight, bias)
    return to_x, to_weight, to_bias


def _normalised(x: Tensor, pieces: _Pieces, means: Tensor, variances: Tensor) -> Tensor:
    statistics = (pieces.of_pieces(one).view(-1) for one in (means, variances))
    flat = x.view(1, -1, pieces.size)
    return aten.native_batch_norm(flat, None, None, *statistics, False, 0.0, 0.0)[0]  # type: ignore[no-any-return]


def _input_gradient(grad: Tensor, x: Tensor, pieces: _Pieces, mean: Tensor, variance: Tensor, centred: bool) -> Tensor:
    """Where g is what comes in, and r_l and x_l are one over the deviation and what is normalised of level l, for a
    channel of level j

        r_j g - the sum over l >= j of r_l (sum of g in l + x_l * sum of g x_l in l) / N_l.

    `mean`, `variance`: of every row and piece.
    """
    flat, shape = x.view(1, -1, pieces.size), mean.shape
    statistics = mean.view(-1), variance.view(-1)
    result, product, total = aten.native_batch_norm_backward(
        grad.view(flat.shape), flat, torch.ones_like(statistics[1]), *statistics, None, None, False, 0.0, [True] * 3
    )
    scale = variance.rsqrt()
    share = scale * pieces.per_channel
    slope = (share * scale).mul_(product.view(shape))
    if centred:
        start = torch.addcmul(share.mul_(total.view(shape)), slope, mean, value=-1)
        start, slope = _later(torch.stack((start, slope)), pieces).unsqueeze(-1).unbind()
    else:
        start, slope = None, _later(slope, pieces).unsqueeze(-1)
    parts = result.view(*shape, pieces.size)
    parts.addcmul_(x.view(parts.shape), slope)
    if start is not None:
        parts.add_(start)
    return result.view(x.shape)  # type: ignore[no-any-return]  # of torch


def _later(values: Tensor, pieces: _Pieces) -> Tensor:
    """The sum over the pieces of a level and of those after it."""
    result = values.flip(-1).cumsum(-1).flip(-1)
    return result if pieces.first is None else result.index_select(-1, pieces.first)


def _scale_gradients(grad: Tensor, normed: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Those of weight and bias: a layer norm's, of what is normalised already."""
    mean, scale = normed.new_zeros(len(normed), 1), normed.new_ones(len(normed), 1)
    wanted = [False, True, bias is not None]
    _, to_weight, to_bias = aten.native_layer_norm_backward(
        grad.view(normed.shape), normed, [normed.shape[1]], mean, scale, weight, bias, wanted
    )
    return to_weight, to_bias
