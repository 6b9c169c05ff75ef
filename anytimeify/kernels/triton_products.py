"""Triangular products of matrices as Triton kernels: one launch, whatever the number of levels.

A tile of the result knows the highest level of its rows, and passes over the columns after it without loading them. An
input is given by its strides over (samples, positions, channels), so both layouts of `products.product` are one case.

The gradient of the input is the same kernel: with rows and columns exchanged and levels negated, what a column is read
by is what a row reads. Importing this module needs Triton, which only builds of torch for GPUs bring along.
"""

# Kernels are in Triton's language, whose arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from anytimeify.kernels.products import Gradients, Wanted
from anytimeify.kernels.staircase import Staircase

__all__ = ["DTYPES", "product", "product_gradients"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NEVER = 1 << 30  # above every level
_SPLITS = 64  # of the sum over positions that a weight's gradient is, at most


@triton.jit
def _product(
    x, weight, bias, y, mine, theirs, positions, height, width,
    x_sample, x_position, x_channel, w_row, w_column, y_sample, y_position, y_channel,
    tile_p: tl.constexpr, tile_o: tl.constexpr, tile_c: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, never: tl.constexpr,
):  # fmt: skip
    """y[n, p, o] = bias[o] + the sum of x[n, p, c] * weight[o, c] over the c with theirs[c] <= mine[o]."""
    sample = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * tile_p + tl.arange(0, tile_p)
    o = tl.program_id(1) * tile_o + tl.arange(0, tile_o)
    row = tl.load(mine + o, mask=o < height, other=-never)
    top = tl.max(row, axis=0)
    total = tl.zeros((tile_p, tile_o), dtype=tl.float32)
    for start in range(0, width, tile_c):
        c = start + tl.arange(0, tile_c)
        column = tl.load(theirs + c, mask=c < width, other=never)
        if tl.min(column, axis=0) <= top:
            place = sample * x_sample + p.to(tl.int64)[:, None] * x_position + c[None, :] * x_channel
            a = tl.load(x + place, mask=(p < positions)[:, None] & (column <= top)[None, :], other=0.0)
            entry = o[None, :] * w_row + c[:, None] * w_column
            b = tl.load(weight + entry, mask=(column[:, None] <= row[None, :]) & (column < never)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=precision)
    if has_bias:
        total += tl.load(bias + o, mask=o < height, other=0.0).to(tl.float32)[None, :]
    place = sample * y_sample + p.to(tl.int64)[:, None] * y_position + o[None, :] * y_channel
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(p < positions)[:, None] & (o < height)[None, :])


@triton.jit
def _contraction(
    grad, x, partial, row_level, column_level, samples, positions, height, width,
    g_sample, g_position, g_channel, x_sample, x_position, x_channel,
    steps, tile_p: tl.constexpr, tile_o: tl.constexpr, tile_c: tl.constexpr,
    precision: tl.constexpr, never: tl.constexpr,
):  # fmt: skip
    """partial[s, o, c] = the sum of grad[n, p, o] * x[n, p, c] over the s-th part of all (n, p), zero where the weight
    has no element."""
    split = tl.program_id(2)
    o = tl.program_id(0) * tile_o + tl.arange(0, tile_o)
    c = tl.program_id(1) * tile_c + tl.arange(0, tile_c)
    row = tl.load(row_level + o, mask=o < height, other=-never)
    column = tl.load(column_level + c, mask=c < width, other=never)
    total = tl.zeros((tile_o, tile_c), dtype=tl.float32)
    if tl.min(column, axis=0) <= tl.max(row, axis=0):
        tiles = tl.cdiv(positions, tile_p)
        first = split * steps
        for step in range(first, tl.minimum(first + steps, samples * tiles)):
            sample = (step // tiles).to(tl.int64)
            p = (step % tiles) * tile_p + tl.arange(0, tile_p)
            place = p.to(tl.int64)[None, :] * g_position + o[:, None] * g_channel + sample * g_sample
            a = tl.load(grad + place, mask=(o < height)[:, None] & (p < positions)[None, :], other=0.0)
            place = p.to(tl.int64)[:, None] * x_position + c[None, :] * x_channel + sample * x_sample
            b = tl.load(x + place, mask=(p < positions)[:, None] & (c < width)[None, :], other=0.0)
            total = tl.dot(a, b, total, input_precision=precision)
    total = tl.where(column[None, :] <= row[:, None], total, 0.0)
    place = split.to(tl.int64) * height * width + o.to(tl.int64)[:, None] * width + c[None, :]
    tl.store(partial + place, total, mask=(o < height)[:, None] & (c < width)[None, :])


def product(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase) -> Tensor:
    """A linear layer of (positions, channels), or of (samples, channels, positions), as `products.product`."""
    y = x.new_empty(len(x), len(weight), *x.shape[2:])
    mine, theirs = _levels(shape, x.device)
    _launch(x, weight, bias, y, mine, theirs)
    return y


def product_gradients(grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, wanted: Wanted) -> Gradients:
    """The gradients of input and weight, as `products.product_gradients`."""
    rows, columns = _levels(shape, x.device)
    dx = dw = None
    if wanted[0]:
        dx = torch.empty_like(x)
        _launch(grad, weight.t(), None, dx, -columns, -rows)
    if wanted[1]:
        dw = _weight_gradient(grad, x, weight, rows, columns)
    return Gradients(dx, dw)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, mine: Tensor, theirs: Tensor) -> None:
    samples, positions, strides = _sizes(x)
    height, width = weight.shape
    tile_p, tile_o, tile_c = _tile(positions), _tile(height), 32
    _product[triton.cdiv(positions, tile_p), triton.cdiv(height, tile_o), samples](
        x, weight, weight if bias is None else bias, y, mine, theirs, positions, height, width,
        *strides, *weight.stride(), *_sizes(y)[2],
        tile_p=tile_p, tile_o=tile_o, tile_c=tile_c, has_bias=bias is not None, precision=_precision(), never=_NEVER,
    )  # fmt: skip


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    samples, positions, strides = _sizes(x)
    height, width = weight.shape
    tile_o, tile_c, tile_p = _tile(height), _tile(width), 32
    steps = samples * triton.cdiv(positions, tile_p)
    splits = min(_SPLITS, triton.cdiv(steps, 8))
    partial = x.new_empty(splits, height, width, dtype=torch.float32)
    _contraction[triton.cdiv(height, tile_o), triton.cdiv(width, tile_c), splits](
        grad, x, partial, rows, columns, samples, positions, height, width,
        *_sizes(grad)[2], *strides, triton.cdiv(steps, splits),
        tile_p=tile_p, tile_o=tile_o, tile_c=tile_c, precision=_precision(), never=_NEVER,
    )  # fmt: skip
    return partial.sum(0).to(weight.dtype)


def _sizes(x: Tensor) -> tuple[int, int, tuple[int, int, int]]:
    """Samples, positions, and the strides of samples, positions and channels."""
    if x.dim() == 2:
        return 1, len(x), (0, x.stride(0), x.stride(1))
    return len(x), x.shape[2], (x.stride(0), x.stride(2), x.stride(1))


def _tile(size: int) -> int:
    return 16 if size <= 16 else 32 if size <= 32 else 64


def _precision() -> str:
    """As torch multiplies matrices of full precision."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@cache
def _levels(shape: Staircase, device: torch.device) -> tuple[Tensor, Tensor]:
    """The level of every row and of every column; rows that read nothing are below all, columns that nothing reads
    above."""
    rows, columns = torch.full((shape.height,), -1), torch.full((shape.width,), _NEVER)
    parts: list[tuple[Tensor, tuple[Any, ...]]] = [(rows, shape.rows), (columns, shape.columns)]
    for levels, intervals in parts:
        for level, own in enumerate(intervals):
            for start, end in own:
                levels[start:end] = level
    return rows.to(device, torch.int32), columns.to(device, torch.int32)
