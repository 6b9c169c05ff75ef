"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import Row
from anytimeify.capture.sources.onnx.values import bounded, sizes_of

__all__ = ["ROWS", "padded"]

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def padded(x: Tensor, before: Sequence[Any], after: Sequence[Any], mode: str, value: float | None = None) -> Tensor:
    """`F.pad` with a number for each axis, from the first to the last; a negative number crops."""
    bounded([size + one + two for size, one, two in zip(x.shape, before, after, strict=True)])
    numbers = [number for pair in reversed(list(zip(before, after, strict=True))) for number in pair]
    while numbers and numbers[-2:] == [0, 0]:
        numbers = numbers[:-2]
    if not numbers:
        return x
    if _MODES[mode] == "constant":
        return F.pad(x, numbers, "constant", value)
    return _padded_by_index(x, before, after, mode)


def _padded_by_index(x: Tensor, before: Sequence[Any], after: Sequence[Any], mode: str) -> Tensor:
    """Axis by axis: torch pads the last axes, of tensors of some ranks; the others by an index."""
    for axis, (one, two) in enumerate(zip(before, after, strict=True)):
        if one == 0 and two == 0:
            continue
        if axis == x.dim() - 1 and x.dim() in (2, 3) and min(one, two) >= 0:
            x = F.pad(x, (one, two), _MODES[mode])
        elif axis == x.dim() - 2 and x.dim() == 4 and min(one, two, before[-1], after[-1]) >= 0:
            return F.pad(x, (before[-1], after[-1], one, two), _MODES[mode])
        elif axis == x.dim() - 1 and x.dim() == 4 and min(one, two) >= 0:
            return F.pad(x, (one, two, 0, 0), _MODES[mode])
        else:
            size = x.shape[axis]
            places = [_source(place, size, mode) for place in range(-one, size + two)]
            x = x.index_select(axis, torch.tensor(places, device=x.device))
    return x


def _source(place: int, size: int, mode: str) -> int:
    if mode == "edge":
        return min(max(place, 0), size - 1)
    if mode == "wrap":
        return place % size
    place = place % (2 * (size - 1)) if size > 1 else 0
    return place if place < size else 2 * (size - 1) - place


def _pad(
    x: Tensor, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Any:
    numbers = sizes_of(pads)
    chosen = range(x.dim()) if axes is None else [axis % x.dim() for axis in sizes_of(axes)]
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = numbers[place], numbers[place + len(numbers) // 2]
    number = 0 if value is None or not value.size else value.reshape(-1).tolist()[0]
    return padded(x, before, after, mode, number)


ROWS = (Row("Pad", 11, _pad, numbers=(1, 2, 3)),)
