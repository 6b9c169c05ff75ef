"""Norms of all levels as Triton kernels: one launch in each direction, whatever the number of levels.

A program has whole rows, so that statistics of every level are sums over what it has loaded, and are exactly those of
the level's own norm. Importing this module needs Triton, which only builds of torch for GPUs bring along.
"""

# Kernels are in Triton's language, whose arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DTYPES", "WIDEST", "gradients", "norm"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 8192  # channels that a program holds
_TILE = 2048  # elements of a program, where rows are short
_PROGRAMS = 512  # of a backward pass, at most: each has a part of the sums over rows


@triton.jit
def _norm(
    x, weight, bias, y, means, variances, ends, rows, width, eps,
    levels: tl.constexpr, tile_r: tl.constexpr, tile_c: tl.constexpr,
    centred: tl.constexpr, has_weight: tl.constexpr, has_bias: tl.constexpr,
):  # fmt: skip
    """y[r, c] = (x[r, c] - mean) / deviation * weight[c] + bias[c], of the channels up to the end of the level of c."""
    r = tl.program_id(0).to(tl.int64) * tile_r + tl.arange(0, tile_r)
    c = tl.arange(0, tile_c)
    place = r[:, None] * width + c[None, :]
    inside = (r < rows)[:, None] & (c < width)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    normed = tl.zeros((tile_r, tile_c), dtype=tl.float32)
    start = 0
    for level in range(levels):
        end = tl.load(ends + level)
        read = (c < end)[None, :]
        if centred:
            mean = tl.sum(value * read, axis=1) / end
        else:
            mean = tl.zeros((tile_r,), dtype=tl.float32)
        away = tl.where(read, value - mean[:, None], 0.0)
        variance = tl.sum(away * away, axis=1) / end + eps
        own = ((c >= start) & (c < end))[None, :]
        normed = tl.where(own, away * tl.rsqrt(variance)[:, None], normed)
        tl.store(means + r * levels + level, mean, mask=r < rows)
        tl.store(variances + r * levels + level, variance, mask=r < rows)
        start = end
    if has_weight:
        normed *= tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    if has_bias:
        normed += tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    tl.store(y + place, normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(
    grad, x, means, variances, weight, dx, partial, ends, rows, width, steps,
    levels: tl.constexpr, tile_r: tl.constexpr, tile_c: tl.constexpr,
    centred: tl.constexpr, has_weight: tl.constexpr, wants_x: tl.constexpr, wants_scale: tl.constexpr,
):  # fmt: skip
    """The gradient of the input, and of weight and bias the part of these rows.

    Where g is what comes in times the weight, m_l and r_l are mean and one over the deviation of level l: dx of a
    channel of level j is r_j g - the sum over l >= j of (r_l sum(g) + (x - m_l) r_l^2 sum(g (x - m_l) r_l)) / N_l, sums
    over the channels of l.
    """
    c = tl.arange(0, tile_c)
    scale = tl.full((tile_c,), 1.0, dtype=tl.float32)
    if has_weight:
        scale = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
    to_weight = tl.zeros((tile_c,), dtype=tl.float32)
    to_bias = tl.zeros((tile_c,), dtype=tl.float32)
    for step in range(steps):
        r = (tl.program_id(0).to(tl.int64) * steps + step) * tile_r + tl.arange(0, tile_r)
        there = r < rows
        place = r[:, None] * width + c[None, :]
        inside = there[:, None] & (c < width)[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        comes = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        given = comes * scale[None, :]
        last = tl.load(means + r * levels + levels - 1, mask=there, other=0.0)  # distances from it lose fewer digits
        normed = tl.zeros((tile_r, tile_c), dtype=tl.float32)
        result = tl.zeros((tile_r, tile_c), dtype=tl.float32)
        shift = tl.zeros((tile_r,), dtype=tl.float32)
        slope = tl.zeros((tile_r,), dtype=tl.float32)
        for after in range(levels):
            level = levels - 1 - after
            end = tl.load(ends + level)
            start = tl.load(ends + level - 1, mask=level > 0, other=0)
            own = ((c >= start) & (c < end))[None, :]
            mean = tl.load(means + r * levels + level, mask=there, other=0.0)
            rate = tl.rsqrt(tl.load(variances + r * levels + level, mask=there, other=1.0))
            now = tl.where(own, (value - mean[:, None]) * rate[:, None], 0.0)
            normed += now
            if wants_x:
                turn = tl.sum(given * now, axis=1) * rate * rate / end
                slope += turn
                if centred:
                    shift += tl.sum(tl.where(own, given, 0.0), axis=1) * rate / end - turn * (mean - last)
                through = given * rate[:, None] - shift[:, None] - (value - last[:, None]) * slope[:, None]
                result = tl.where(own, through, result)
        if wants_x:
            tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
        to_weight += tl.sum(comes * normed, axis=0)
        to_bias += tl.sum(comes, axis=0)
    if wants_scale:
        row = tl.program_id(0) * 2 * width
        tl.store(partial + row + c, to_weight, mask=c < width)
        tl.store(partial + row + width + c, to_bias, mask=c < width)


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: tuple[int, ...], eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `norms_together.norm`, of a contiguous input in one of `DTYPES`."""
    width, levels = ends[-1], len(ends)
    rows, y = x.numel() // width, torch.empty_like(x)
    means, variances = x.new_empty(2, rows, levels, dtype=torch.float32).unbind()
    tile_r, tile_c = _tile(width)
    _norm[(_ceil(rows, tile_r),)](
        x, x if weight is None else weight, x if bias is None else bias, y, means, variances,
        _table(ends, x.device), rows, width, eps,
        levels=levels, tile_r=tile_r, tile_c=tile_c, centred=centred,
        has_weight=weight is not None, has_bias=bias is not None, num_warps=_warps(tile_c),
    )  # fmt: skip
    return y, means, variances


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, means: Tensor, variances: Tensor,
    ends: tuple[int, ...], centred: bool, wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """As `norms_together.gradients`, of what `norm` gave."""
    width, levels = ends[-1], len(ends)
    rows = x.numel() // width
    tile_r, tile_c = _tile(width)
    tiles = _ceil(rows, tile_r)
    steps = _ceil(tiles, _PROGRAMS)
    programs = _ceil(tiles, steps)
    dx = torch.empty_like(x) if wanted[0] else None
    partial = x.new_empty(programs, 2, width, dtype=torch.float32) if any(wanted[1:]) else None
    _gradients[(programs,)](
        grad, x, means, variances, x if weight is None else weight, x if dx is None else dx,
        means if partial is None else partial, _table(ends, x.device), rows, width, steps,
        levels=levels, tile_r=tile_r, tile_c=tile_c, centred=centred, has_weight=weight is not None,
        wants_x=dx is not None, wants_scale=partial is not None, num_warps=_warps(tile_c),
    )  # fmt: skip
    if partial is None:
        return dx, None, None
    to_weight, to_bias = partial.sum(0)
    return dx, to_weight, None if bias is None else to_bias


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


@cache
def _tile(width: int) -> tuple[int, int]:
    """Rows and channels of a program."""
    channels = triton.next_power_of_2(width)
    return max(1, _TILE // channels), channels


def _warps(channels: int) -> int:
    return 4 if channels <= 1024 else 8 if channels <= 4096 else 16


@cache
def _table(ends: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(ends, dtype=torch.int32, device=device)
