"""`anytimeify::prefix_norm`: a layer norm, or RMS norm, in which every level has the statistics of its channels and of
those of lower levels, each channel being normalised once.

With mean m_j and variance v_j of the c_j channels that level j adds, and N_j of them up to there (Chan, Golub and
LeVeque 1979), sums of what is never negative:

    mean_j = mean_(j-1) + (m_j - mean_(j-1)) c_j / N_j
    N_j variance_j = N_(j-1) variance_(j-1) + c_j v_j + (m_j - mean_(j-1))^2 c_j N_(j-1) / N_j

Compilers and function transforms see operations of torch (`_composed`). Run one by one, those of all levels are taken
together, by kernels of torch for batch norms whose channels are the chunks of every row, with a derivative by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytimeify._torch import is_plain
from anytimeify.operators.modules import LIBRARY

__all__ = ["PREFIX_NORM", "is_regular"]

aten = torch.ops.aten
_MOST = 4  # pieces per level, on average
LIBRARY.define("prefix_norm(Tensor input, int[] ends, Tensor? weight, Tensor? bias, float eps, bool centred) -> Tensor")


def is_regular(ends: Sequence[int]) -> bool:
    """Whether chunks with these ends consist of few pieces of one size, so that they are taken together."""
    return ends[-1] // _piece(ends) <= _MOST * len(ends)


def _prefix_norm(
    input: Tensor, ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """The norm of the last dimension, whose levels end at `ends`; in full precision, as torch's norms are."""
    keeps = not (input.is_cuda and torch.is_autocast_enabled("cuda"))  # under which norms give full precision
    x = input.float() if input.dtype.itemsize < 4 else input
    scale, shift = (None if one is None else one.to(x.dtype) for one in (weight, bias))
    if is_plain(x) and x.device.type != "meta" and x.numel() and is_regular(ends):
        y: Tensor = _Together.apply(x, scale, shift, tuple(ends), eps, centred)  # type: ignore[no-untyped-call]  # of torch
    else:
        y = _composed(x, scale, shift, ends, eps, centred)
    return y.to(input.dtype) if keeps else y


LIBRARY.impl("prefix_norm", _prefix_norm, "CompositeImplicitAutograd")
PREFIX_NORM = torch.ops.anytimeify.prefix_norm.default


def _composed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: Sequence[int], eps: float, centred: bool
) -> Tensor:
    """Level after level."""
    mean, total, before, found = x.new_zeros(()), x.new_zeros(()), 0, []
    for chunk in x.split([end - start for start, end in pairwise((0, *ends))], -1):
        count, after = chunk.shape[-1], before + chunk.shape[-1]
        if centred:
            variance, own = torch.var_mean(chunk, -1, correction=0, keepdim=True)
            total = total + count * variance + (own - mean).square() * (count * before / after)
            mean = mean + (own - mean) * (count / after)
        else:
            total = total + chunk.square().sum(-1, keepdim=True)
        found.append((chunk - mean) * torch.rsqrt(total / after + eps))
        before = after
    return _scaled(torch.cat(found, -1), weight, bias)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return x
    return x * weight if bias is None else torch.addcmul(bias, x, weight)


# -- all levels together -----------------------------------------------------------------------------------------------


def _piece(ends: Sequence[int]) -> int:
    return math.gcd(*ends)


class _Pieces(NamedTuple):
    """Numbers for each of the pieces of one size that chunks consist of."""

    share: Tensor  # of a piece in the mean of the pieces up to it
    update: Tensor  # what its distance from that mean adds
    per_channel: Tensor  # one over the channels that its level reads, negative
    last: Tensor | None  # the last piece of its level, None where every level is one piece
    first: Tensor | None


@cache
def _pieces(ends: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Pieces:
    size = _piece(ends)
    counts = [end // size for end in ends]
    place = [next(level for level, count in enumerate(counts) if piece < count) for piece in range(counts[-1])]
    last, first = [counts[level] - 1 for level in place], [(0, *counts)[level] for level in place]
    many = list(range(1, counts[-1] + 1))
    simple = last == first

    def table(values: Sequence[float], dtype: torch.dtype = dtype) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(values, dtype=dtype, device=device)

    return _Pieces(
        table([1 / count for count in many]),
        table([0.0, *(count / (count - 1) for count in many[1:])]),
        table([-1 / ends[level] for level in place]),
        None if simple else table(last, torch.int64),
        None if simple else table(first, torch.int64),
    )


class _Together(torch.autograd.Function):
    """All levels by the same operations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: Any, eps: float, centred: bool
    ) -> Tensor:
        pieces = _pieces(ends, x.dtype, x.device)
        count = len(pieces.share)
        flat = x.reshape(1, -1, _piece(ends))
        mean, variance = (one.view(-1, count) for one in torch.batch_norm_update_stats(flat, None, None, 0.0))
        if centred:
            means = mean.cumsum(1).mul_(pieces.share)
            distance = mean.sub_(means)
            variance = torch.addcmul(variance, distance, distance * pieces.update)
        else:
            means, variance = torch.zeros_like(mean), torch.addcmul(variance, mean, mean)
        variances = variance.cumsum(1).mul_(pieces.share)
        if pieces.last is not None:
            means, variances = means.index_select(1, pieces.last), variances.index_select(1, pieces.last)
        statistics = means.view(-1), variances.view(-1)
        normed = aten.native_batch_norm(flat, None, None, *statistics, False, 0.0, eps)[0].view(x.shape)
        ctx.save_for_backward(x, normed, means, variances, weight, bias)
        ctx.rest = (ends, eps, centred)
        return _scaled(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, normed, means, variances, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # for derivatives of higher order
            inputs = [one for one, wanted in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if wanted]
            again = _composed(x, weight, bias, *ctx.rest)
            found = iter(torch.autograd.grad(again, inputs, grad, create_graph=True))
            return (*(next(found) if wanted else None for wanted in ctx.needs_input_grad[:3]), None, None, None)
        dx = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            given = grad if weight is None else grad * weight
            dx = _input_gradient(given, x, means, variances, *ctx.rest)
        if any(ctx.needs_input_grad[1:3]):
            to_weight, to_bias = _scale_gradients(grad, normed, weight, bias)
        return dx, to_weight, to_bias, None, None, None


def _input_gradient(
    grad: Tensor, x: Tensor, means: Tensor, variances: Tensor, ends: tuple[int, ...], eps: float, centred: bool
) -> Tensor:
    """Where g is what comes in, and r_l and x_l are one over the deviation and what is normalised of level l, for a
    channel of level j

        r_j g - the sum over l >= j of r_l (sum of g in l + x_l * sum of g x_l in l) / N_l.
    """
    pieces = _pieces(ends, x.dtype, x.device)
    flat = x.reshape(1, -1, _piece(ends))
    statistics = means.view(-1), variances.view(-1)
    scale = variances.add(eps).rsqrt_()
    ones = torch.ones_like(statistics[1])
    direct, product, total = aten.native_batch_norm_backward(
        grad.reshape(flat.shape), flat, ones, *statistics, None, None, False, eps, [True, True, True]
    )
    share = scale * pieces.per_channel
    slope = (share * scale).mul_(product.view(scale.shape))
    if centred:
        near = means - means[:, -1:]
        level = torch.addcmul(share.mul_(total.view(scale.shape)), slope, near, value=-1)
        level, slope = _later(torch.stack((level, slope)), pieces).unbind()
        level = torch.addcmul(level, near, slope).view(-1)
    else:
        slope = _later(slope, pieces)
        level = None
    through = aten.native_batch_norm(flat, (slope / scale).view(-1), level, *statistics, False, 0.0, eps)[0]
    return through.add_(direct).view(x.shape)  # type: ignore[no-any-return]  # of torch


def _later(values: Tensor, pieces: _Pieces) -> Tensor:
    """The sum over the pieces of a level and of those after it."""
    result = values.flip(-1).cumsum(-1).flip(-1)
    return result if pieces.first is None else result.index_select(-1, pieces.first)


def _scale_gradients(grad: Tensor, normed: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Those of weight and bias: a layer norm's, of what is normalised already."""
    rows = normed.view(-1, normed.shape[-1])
    mean, scale = rows.new_zeros(len(rows), 1), rows.new_ones(len(rows), 1)
    wanted = [False, True, bias is not None]
    _, to_weight, to_bias = aten.native_layer_norm_backward(
        grad.reshape(rows.shape), rows, [rows.shape[1]], mean, scale, weight, bias, wanted
    )
    return to_weight, to_bias
