"""`anytimeify::prefix_norm`: a layer norm, or RMS norm, in which every level has the statistics of its channels and of
those of lower levels, each channel being normalised once.

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

from anytimeify._torch import is_plain
from anytimeify.kernels import norm_operators
from anytimeify.kernels.norms_together import is_regular, scaled
from anytimeify.operators.modules import LIBRARY

__all__ = ["PREFIX_NORM"]

LIBRARY.define("prefix_norm(Tensor input, int[] ends, Tensor? weight, Tensor? bias, float eps, bool centred) -> Tensor")


def _prefix_norm(
    input: Tensor, ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """The norm of the last dimension, whose levels end at `ends`; in full precision, as torch's norms are."""
    if input.is_cuda and torch.is_autocast_enabled("cuda") and input.dtype.itemsize < 4:
        input = input.float()  # under which norms give full precision
    if is_plain(input) and input.device.type != "meta" and input.numel() and is_regular(ends):
        y: Tensor = _Norm.apply(input, weight, bias, tuple(ends), eps, centred)  # type: ignore[no-untyped-call]  # of torch
        return y
    return _composed(input, weight, bias, ends, eps, centred)


LIBRARY.impl("prefix_norm", _prefix_norm, "CompositeImplicitAutograd")
PREFIX_NORM = torch.ops.anytimeify.prefix_norm.default


def _composed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: Sequence[int], eps: float, centred: bool
) -> Tensor:
    """Level after level, of operations of torch."""
    given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    weight, bias = (None if one is None else one.to(x.dtype) for one in (weight, bias))
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
    return scaled(torch.cat(found, -1), weight, bias).to(given)


class _Norm(torch.autograd.Function):
    """One operator in each direction; derivatives of higher order are those of `_composed`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: Any, eps: float, centred: bool
    ) -> Tensor:
        kernel = norm_operators.takes_kernel(x, weight, bias, ends, eps, centred, trains=any(ctx.needs_input_grad))
        y, means, variances = norm_operators.FORWARD(x, weight, bias, ends, eps, centred, kernel)
        ctx.save_for_backward(x, weight, bias, means, variances)
        ctx.rest = (ends, eps, centred, kernel)
        return y  # type: ignore[no-any-return]  # an operator has no types

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, means, variances = ctx.saved_tensors
        ends, eps, centred, kernel = ctx.rest
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for derivatives of higher order
            inputs = [one for one, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            again = _composed(x, weight, bias, ends, eps, centred)
            found = iter(torch.autograd.grad(again, inputs, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in wanted), None, None, None)
        given = norm_operators.BACKWARD(grad, x, weight, bias, means, variances, ends, centred, list(wanted), kernel)
        return (*(one if needed else None for one, needed in zip(given, wanted, strict=True)), None, None, None)
