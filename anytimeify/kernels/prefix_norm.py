"""Norms in which every level has the statistics of its channels and of those of lower levels, each channel being
normalised once.

* `anytimeify::prefix_norm`: a layer norm or RMS norm of the last dimension, whose levels end at `ends`;
* `anytimeify::prefix_group_norm`: a group norm of one group, of all positions of the channels of a level;
* `anytimeify::prefix_standardise`: weight standardisation, as a batch norm of (1, outputs, inputs) without statistics
  of its own. Outputs of a level, up to `rows`, have the statistics of that level at least.

With mean m_j and variance v_j of the c_j channels that level j adds, and N_j of them up to there (Chan, Golub and
LeVeque 1979), sums of what is never negative:

    mean_j = mean_(j-1) + (m_j - mean_(j-1)) c_j / N_j
    N_j variance_j = N_(j-1) variance_(j-1) + c_j v_j + (m_j - mean_(j-1))^2 c_j N_(j-1) / N_j

Compilers and function transforms see operations of torch (`_composed`). Run one by one, all levels are one operator in
each direction (`norm_operators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from anytimeify._torch import is_plain, is_watched
from anytimeify.kernels import norm_operators
from anytimeify.kernels.norm_operators import Levels
from anytimeify.kernels.norms_together import ALIKE, is_regular, scaled
from anytimeify.operators.modules import LIBRARY

__all__ = ["PREFIX_GROUP_NORM", "PREFIX_NORM", "PREFIX_STANDARDISE"]

_SCALE = "Tensor? weight, Tensor? bias, float eps"
LIBRARY.define(f"prefix_norm(Tensor input, int[] ends, {_SCALE}, bool centred) -> Tensor")
LIBRARY.define(f"prefix_group_norm(Tensor input, int[] ends, {_SCALE}) -> Tensor")
LIBRARY.define(f"prefix_standardise(Tensor input, int[] rows, int[] ends, {_SCALE}) -> Tensor")


def _prefix_norm(
    input: Tensor, ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    return _norm(input, weight, bias, Levels(tuple(ends), ALIKE, centred), eps)


def _prefix_group_norm(
    input: Tensor, ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    channels, *size = input.shape[1:]
    flat = input.flatten(1)
    positions = flat.shape[1] // channels
    normed = _norm(flat, None, None, Levels(tuple(end * positions for end in ends), ALIKE, True), eps)
    return _by_channel(normed.view(input.shape), weight, bias, len(size))


def _prefix_standardise(
    input: Tensor, rows: Sequence[int], ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return _by_channel(_norm(input, None, None, Levels(tuple(ends), tuple(rows), True), eps), weight, bias, 1)


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None, positions: int) -> Tensor:
    """With weight and bias of channels that come before so many dimensions."""
    shape = (-1, *[1] * positions)
    weight, bias = (None if one is None else one.to(x.dtype).view(shape) for one in (weight, bias))
    return scaled(x, weight, bias)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, levels: Levels, eps: float) -> Tensor:
    """In full precision inside, as torch's norms are."""
    if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype.itemsize < 4:
        x = x.float()  # under which norms give full precision
    if is_plain(x) and x.device.type != "meta" and x.numel() and is_regular(levels.ends):
        y: Tensor = _Norm.apply(x, weight, bias, levels, eps)  # type: ignore[no-untyped-call]  # of torch
        return y
    return _composed(x, weight, bias, levels, eps)


LIBRARY.impl("prefix_norm", _prefix_norm, "CompositeImplicitAutograd")
LIBRARY.impl("prefix_group_norm", _prefix_group_norm, "CompositeImplicitAutograd")
LIBRARY.impl("prefix_standardise", _prefix_standardise, "CompositeImplicitAutograd")
PREFIX_NORM = torch.ops.anytimeify.prefix_norm.default
PREFIX_GROUP_NORM = torch.ops.anytimeify.prefix_group_norm.default
PREFIX_STANDARDISE = torch.ops.anytimeify.prefix_standardise.default


def _composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, levels: Levels, eps: float) -> Tensor:
    """Level after level, of operations of torch."""
    given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    weight, bias = (None if one is None else one.to(x.dtype) for one in (weight, bias))
    if len(levels.rows) == 1:
        return scaled(_row_norm(x, levels.ends, eps, levels.centred), weight, bias).to(given)
    parts = x.split([end - start for start, end in pairwise((0, *levels.rows))], -2)
    normed = [
        _row_norm(part, levels.ends[level:], eps, levels.centred) for level, part in enumerate(parts) if part.shape[-2]
    ]
    return scaled(torch.cat(normed, -2), weight, bias).to(given)


def _row_norm(x: Tensor, ends: Sequence[int], eps: float, centred: bool) -> Tensor:
    mean, total, before, found = x.new_zeros(()), x.new_zeros(()), 0, []
    for chunk in x.split([end - start for start, end in pairwise((0, *ends))], -1):
        count, after = chunk.shape[-1], before + chunk.shape[-1]
        if not count:
            continue
        if centred:
            variance, own = torch.var_mean(chunk, -1, correction=0, keepdim=True)
            total = total + count * variance + (own - mean).square() * (count * before / after)
            mean = mean + (own - mean) * (count / after)
        else:
            total = total + chunk.square().sum(-1, keepdim=True)
        found.append((chunk - mean) * torch.rsqrt(total / after + eps))
        before = after
    return torch.cat(found, -1)


class _Norm(torch.autograd.Function):
    """One operator in each direction; derivatives of higher order are those of `_composed`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, levels: Levels, eps: float) -> Tensor:
        kernel = norm_operators.takes_kernel(x, weight, bias, levels, eps, trains=any(ctx.needs_input_grad))
        ends, rows, centred = levels
        run = norm_operators.forward if kernel and not is_watched() else norm_operators.FORWARD  # less of Python
        y, means, variances = run(x, weight, bias, ends, rows, eps, centred, kernel)
        ctx.save_for_backward(x, weight, bias, means, variances)
        ctx.rest = (levels, eps, kernel)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, means, variances = ctx.saved_tensors
        levels, eps, kernel = ctx.rest
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for derivatives of higher order
            inputs = [one for one, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            again = _composed(x, weight, bias, levels, eps)
            found = iter(torch.autograd.grad(again, inputs, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in wanted), None, None)
        ends, rows, centred = levels
        statistics = (means, variances, ends, rows, centred)
        run = norm_operators.backward if kernel and not is_watched() else norm_operators.BACKWARD
        given = run(grad, x, weight, bias, *statistics, list(wanted), kernel)
        return (*(one if needed else None for one, needed in zip(given, wanted, strict=True)), None, None)
