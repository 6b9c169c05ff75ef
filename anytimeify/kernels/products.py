"""Triangular convolutions and linear layers as products of torch: forward, and backward by hand.

Forward, every block of rows is one product on the columns that it may read. Backward, every block of columns is one
product with the gradients of the rows that read it, which gives its part of the input's gradient and its part of the
weight's. Nothing of full size is filled with zeros and added up, and the elements that a weight has not are never read:
not even what is not a number gets out of them.

A convolution takes channels as dimension 1. As matrices, inputs are (samples, channels, positions), or where the
channels lie innermost, (positions, channels): either way products read and write some of the channels where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from anytimeify.kernels.staircase import Interval, Rectangle, Staircase, size_of

__all__ = ["Gradients", "Window", "convolution", "convolution_gradients", "masked", "product", "product_gradients"]

aten = torch.ops.aten
_SMALL = 1 << 14  # elements of a weight, below which calls take longer than filling does
Wanted: TypeAlias = tuple[bool, bool]
"""Whether the gradients of input and weight are."""


class Gradients(NamedTuple):
    """Those of input and weight; None where not wanted."""

    x: Tensor | None
    weight: Tensor | None


@dataclass(frozen=True)
class Window:
    """How a convolution slides, one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        zeros = [0] * len(self.stride)
        result: Tensor = aten.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, zeros, 1)
        return result

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: Wanted) -> Gradients:
        zeros, mask = [0] * len(self.stride), [*wanted, False]
        dx, dw, _ = aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, 1, mask
        )
        return Gradients(dx, dw)

    def size(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """The spatial size of the result."""
        return [
            (length + 2 * padding - dilation * (reach - 1) - 1) // stride + 1
            for length, reach, stride, padding, dilation in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]


# -- parts of tensors --------------------------------------------------------------------------------------------------


def take(tensor: Tensor, dim: int, intervals: Sequence[Interval]) -> Tensor:
    """The intervals of one dimension after one another: a view where there is but one."""
    if len(intervals) == 1:
        start, end = intervals[0]
        return tensor if end - start == tensor.shape[dim] else tensor.narrow(dim, start, end - start)
    return torch.cat([tensor.narrow(dim, start, end - start) for start, end in intervals], dim)


def put(into: Tensor, rows: Sequence[Interval], columns: Sequence[Interval], part: Tensor) -> None:
    """Write a part of a weight where it belongs."""
    above = 0
    for top, bottom in rows:
        left = 0
        for start, end in columns:
            into[top:bottom, start:end] = part[above : above + bottom - top, left : left + end - start]
            left += end - start
        above += bottom - top


def clear(weight: Tensor, holes: tuple[Rectangle, ...]) -> Tensor:
    """Zeros into the holes."""
    if len(holes) > 1 and weight.numel() < _SMALL:
        return weight.masked_fill_(_mask(holes, *weight.shape[:2], weight.dim(), weight.device), 0)
    for (top, bottom), (start, end) in holes:
        weight[top:bottom, start:end] = 0
    return weight


@cache
def _mask(holes: tuple[Rectangle, ...], height: int, width: int, rank: int, device: torch.device) -> Tensor:
    mask = torch.zeros(height, width, *[1] * (rank - 2), dtype=torch.bool)
    for (top, bottom), (start, end) in holes:
        mask[top:bottom, start:end] = True
    return mask.to(device)


def part_of(
    weight: Tensor, rows: Sequence[Interval], columns: Sequence[Interval], holes: tuple[Rectangle, ...]
) -> Tensor:
    """The matrix `rows` x `columns` of a weight, zeros in its holes."""
    part = take(take(weight, 0, rows), 1, columns)
    return _cleared(part, holes) if holes else part


def masked(weight: Tensor, shape: Staircase) -> Tensor:
    """The whole weight, zeros where it has no elements."""
    return _cleared(weight, shape.holes)


def _cleared(weight: Tensor, holes: tuple[Rectangle, ...]) -> Tensor:
    """A copy with zeros in the holes."""
    if len(holes) > 1 and weight.numel() < _SMALL:
        return weight.masked_fill(_mask(holes, *weight.shape[:2], weight.dim(), weight.device), 0)
    return clear(weight.clone(), holes)


def assembled(parts: Sequence[tuple[Sequence[Interval], Tensor]]) -> Tensor:
    """Parts of dimension 1 in the order of their intervals."""
    pieces: list[tuple[Interval, Tensor]] = []
    for intervals, part in parts:
        offset = 0
        for start, end in intervals:
            whole = end - start == part.shape[1]
            pieces.append(((start, end), part if whole else part.narrow(1, offset, end - start)))
            offset += end - start
    pieces.sort(key=lambda piece: piece[0])
    return pieces[0][1] if len(pieces) == 1 else torch.cat([piece for _, piece in pieces], 1)


# -- convolutions ------------------------------------------------------------------------------------------------------


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, window: Window, count: int) -> Tensor:
    """As `count` products; 0: one product with the masked weight."""
    if not count:
        return window(x, masked(weight, shape), bias)
    parts: list[tuple[Sequence[Interval], Tensor]] = []
    for block in shape.blocks(count):
        part = part_of(weight, block.rows, block.columns, block.holes)
        own = None if bias is None else take(bias, 0, block.rows)
        parts.append((block.rows, window(take(x, 1, block.columns), part, own)))
    if shape.empty_rows:
        size = (x.shape[0], size_of(shape.empty_rows), *window.size(x.shape[2:], weight.shape[2:]))
        own = x.new_zeros(()) if bias is None else take(bias, 0, shape.empty_rows).view(-1, *[1] * (x.dim() - 2))
        parts.append((shape.empty_rows, own.expand(size)))
    return assembled(parts)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, window: Window, count: int, wanted: Wanted
) -> Gradients:
    """The gradients of input and weight from that of the result."""
    if not count:
        whole = window.gradients(grad, x, masked(weight, shape), wanted)
        return Gradients(whole.x, None if whole.weight is None else clear(whole.weight, shape.holes))
    parts: list[tuple[Sequence[Interval], Tensor]] = []
    dw = torch.empty_like(weight) if wanted[1] else None
    for block in shape.blocks(count):
        part = part_of(weight, block.later, block.new, block.later_holes)
        own = window.gradients(take(grad, 1, block.later), take(x, 1, block.new), part, wanted)
        if own.x is not None:
            parts.append((block.new, own.x))
        if dw is not None and own.weight is not None:
            put(dw, block.later, block.new, own.weight)
    if shape.empty_columns:
        parts.append((shape.empty_columns, torch.zeros_like(take(x, 1, shape.empty_columns))))
    return Gradients(assembled(parts) if wanted[0] else None, None if dw is None else clear(dw, shape.holes))


# -- products of matrices ----------------------------------------------------------------------------------------------


def product(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, count: int) -> Tensor:
    """A linear layer of (positions, channels), or of (samples, channels, positions), as `count` products."""
    inner = x.dim() == 2
    y = x.new_empty(len(x), len(weight), *x.shape[2:])
    for block in shape.blocks(count):
        part, given = part_of(weight, block.rows, block.columns, block.holes), take(x, 1, block.columns)
        into = take(y, 1, block.rows) if len(block.rows) == 1 else None
        own = torch.mm(given, part.t(), out=into) if inner else torch.bmm(_each(part, x), given, out=into)
        if into is None:
            put(y, ((0, len(y)),), block.rows, own)
    for start, end in shape.empty_rows:
        y[:, start:end] = 0
    return y if bias is None else y.add_(bias if inner else bias[:, None])


def product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, count: int, wanted: Wanted
) -> Gradients:
    """The gradients of input and weight from that of the result, all in one of the layouts of `product`."""
    dx = torch.empty_like(x) if wanted[0] else None
    dw = torch.empty_like(weight) if wanted[1] else None
    for block in shape.blocks(count):
        later = take(grad, 1, block.later)
        if dx is not None:
            part = part_of(weight, block.later, block.new, block.later_holes)
            into = take(dx, 1, block.new) if len(block.new) == 1 else None
            own = torch.mm(later, part, out=into) if x.dim() == 2 else torch.bmm(_each(part.t(), x), later, out=into)
            if into is None:
                put(dx, ((0, len(dx)),), block.new, own)
        if dw is not None:
            put(dw, block.later, block.new, _contracted(later, take(x, 1, block.new)))
    if dx is not None:
        for start, end in shape.empty_columns:
            dx[:, start:end] = 0
    return Gradients(dx, None if dw is None else clear(dw, shape.holes))


def _each(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix.expand(len(x), *matrix.shape)


def _contracted(grad: Tensor, x: Tensor) -> Tensor:
    """The weight's gradient: contracted over samples and positions."""
    if x.dim() == 2:
        return grad.t() @ x
    if x.device.type != "cpu" or x.dtype.itemsize < 4:  # what is short is not summed in its own precision
        return torch.bmm(grad, x.transpose(1, 2)).sum(0)
    dw = x.new_zeros(grad.shape[1], x.shape[1])
    for one, other in zip(grad, x, strict=True):  # faster than all at once, and without a weight per sample
        dw.addmm_(one, other.t())
    return dw
