"""Operators that reduce axes. Axes are an attribute, or an input: of sums from version 13 on, of others from 18."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import Row
from anytimeify.capture.sources.onnx.values import array_of

__all__ = ["ROWS"]

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _products(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "ReduceProd": _products,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
}


def _with_attribute(function: Reduction) -> Callable[..., Tensor]:
    def reduced(x: Tensor, *, axes: list[int] | None = None, keepdims: int = 1) -> Tensor:
        return function(x, list(range(x.dim())) if axes is None else axes, bool(keepdims))

    return reduced


def _with_input(function: Reduction) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = [] if axes is None else axes.reshape(-1).tolist()
        if not chosen and noop_with_empty_axes:
            return x
        return function(x, chosen or list(range(x.dim())), bool(keepdims))

    return reduced


def _of_sizes(operation: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    """All of a list of sizes as one."""

    def reduced(
        x: Array, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **attributes: Any
    ) -> Array:
        total = np.empty((1,) * x.ndim if keepdims else (), object)
        total.fill(reduce(operation, x.reshape(-1).tolist()))
        return array_of(total)

    return reduced


_SIZES: dict[str, Callable[[Any, Any], Any]] = {
    "ReduceProd": lambda a, b: a * b,
    "ReduceSum": lambda a, b: a + b,
    "ReduceMax": torch.sym_max,
    "ReduceMin": torch.sym_min,
}


def _rows() -> tuple[Row, ...]:
    found = []
    for name, function in REDUCTIONS.items():
        sizes = _of_sizes(_SIZES[name]) if name in _SIZES else None
        since = 13 if name == "ReduceSum" else 18
        found.append(Row(name, 1, _with_attribute(function), sizes=sizes))
        found.append(Row(name, since, _with_input(function), numbers=(1,), sizes=sizes))
    return tuple(found)


def _arg(largest: bool) -> Callable[..., Tensor]:
    def found(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        source = x.flip(axis) if select_last_index else x
        index = source.argmax(axis, bool(keepdims)) if largest else source.argmin(axis, bool(keepdims))
        return x.shape[axis] - 1 - index if select_last_index else index

    return found


def _top_k(x: Tensor, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Of equal elements the first ones are taken, which `torch.topk` leaves open."""
    values, indices = x.sort(dim=axis, descending=bool(largest), stable=True)
    count = int(k.reshape(-1)[0])
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


ROWS = (
    *_rows(),
    Row("ArgMax", 1, _arg(True)),
    Row("ArgMin", 1, _arg(False)),
    Row("TopK", 11, _top_k, numbers=(1,)),
)
