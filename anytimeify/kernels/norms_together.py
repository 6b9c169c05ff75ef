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

__all__ = ["ALIKE", "Normed", "gradients", "is_regular", "norm", "scaled"]

aten = torch.ops.aten
_MOST = 4  # pieces per level, on average
ALIKE = (1,)  # of rows without levels of their own


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
    per_channel: Tensor  # one over the channels whose statistics it has, negative
    level: Tensor | None  # whose statistics it has, of every piece or row and piece; None where levels are pieces
    first: Tensor | None  # the first of the pieces that have its statistics
    last: Tensor | None  # the last piece of every level

    def of_levels(self, values: Tensor) -> Tensor:
        """From a value up to every piece to that of every level."""
        return values if self.last is None else values.index_select(1, self.last)

    def of_pieces(self, values: Tensor) -> Tensor:
        """From a value of every level to those of its pieces."""
        return _taken(values, self.level)

    def later(self, values: Tensor) -> Tensor:
        """The sum over the pieces with the statistics of a piece and over those after them."""
        return _taken(values.flip(-1).cumsum(-1).flip(-1), self.first)


def _taken(values: Tensor, places: Tensor | None) -> Tensor:
    if places is None:
        return values
    if places.dim() == 1:
        return values.index_select(-1, places)
    return values.gather(-1, places.expand(*values.shape[:-1], -1))


@cache
def _pieces(ends: tuple[int, ...], rows: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Pieces:
    size = math.gcd(*ends)
    counts = [end // size for end in ends]
    own = torch.tensor([next(level for level, end in enumerate(counts) if piece < end) for piece in range(counts[-1])])
    least = torch.tensor([next(level for level, end in enumerate(rows) if row < end) for row in range(max(rows))])
    level = torch.maximum(own, least[:, None])
    first = torch.tensor([0, *counts])[level] * (level > least[:, None])
    many = range(1, counts[-1] + 1)

    def table(values: Tensor | Sequence[float], dtype: torch.dtype = dtype) -> Tensor:
        with torch.inference_mode(False):
            return torch.as_tensor(values, dtype=dtype).to(device)

    def places(values: Tensor | Sequence[int]) -> Tensor | None:
        return table(values, torch.int64) if len(counts) < counts[-1] or len(rows) > 1 else None

    together = 0 if len(rows) == 1 else slice(None)  # all rows are alike
    return _Pieces(
        size,
        table([1 / count for count in many]),
        table([0.0, *(count / (count - 1) for count in many[1:])]),
        table(-1 / torch.tensor(ends, dtype=torch.float64)[level[together]]),
        places(level[together]),
        places(first[together]),
        places([count - 1 for count in counts]),
    )


def norm(
    x: Tensor, ends: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool,
    rows: tuple[int, ...] = ALIKE,
) -> Normed:  # fmt: skip
    """Of rows of full precision, contiguous. `rows`: where the rows of every level end; a row has the statistics of its
    own level also in the channels of lower ones."""
    pieces = _pieces(ends, rows, x.dtype, x.device)
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
    ends: tuple[int, ...], centred: bool, wanted: Sequence[bool], rows: tuple[int, ...] = ALIKE,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Of input, weight and bias, where wanted."""
    pieces = _pieces(ends, rows, x.dtype, x.device)
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
        start, slope = pieces.later(torch.stack((start, slope))).unsqueeze(-1).unbind()
    else:
        start, slope = None, pieces.later(slope).unsqueeze(-1)
    parts = result.view(*shape, pieces.size)
    parts.addcmul_(x.view(parts.shape), slope)
    if start is not None:
        parts.add_(start)
    return result.view(x.shape)  # type: ignore[no-any-return]  # of torch


def _scale_gradients(
    grad: Tensor, normed: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Those of weight and bias: a layer norm's, of what is normalised already."""
    mean, scale = normed.new_zeros(len(normed), 1), normed.new_ones(len(normed), 1)
    wanted = [False, True, bias is not None]
    _, to_weight, to_bias = aten.native_layer_norm_backward(
        grad.view(normed.shape), normed, [normed.shape[1]], mean, scale, weight, bias, wanted
    )
    return to_weight, to_bias
