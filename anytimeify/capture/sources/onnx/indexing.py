"""Operators that read or write elements at places that a tensor names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import array_of

__all__ = ["ROWS"]


def _gather(x: Tensor, places: Any, *, axis: int = 0) -> Tensor:
    """A table of parameters that is read by its rows is an embedding."""
    if places.dim() == 0:
        return x.index_select(axis, _positive(places, x, axis).reshape(1)).squeeze(axis)
    if isinstance(x, nn.Parameter) and x.dim() == 2 and axis == 0:
        return F.embedding(places, x)
    found = x.index_select(axis, _positive(places, x, axis).reshape(-1))
    return found.unflatten(axis, places.shape) if places.dim() > 1 else found


def _positive(places: Tensor, x: Tensor, axis: int) -> Tensor:
    """Places counted from the front. Those of parameters are, in what exporters write."""
    places = places.long()
    return places if isinstance(x, nn.Parameter) else torch.where(places < 0, places + x.shape[axis], places)


def _gather_sizes(x: Array, places: Array, *, axis: int = 0) -> Array:
    return array_of(np.take(x, places.astype(np.int64), axis))


def _gather_at(x: Any, places: Any, *, axis: int = 0) -> Any:
    """Places that are known: one number, a range, or an index that is a constant."""
    if isinstance(places, np.ndarray):
        if places.size == 1 and places.ndim == 0:
            return x.select(axis, int(places))
        size = x.shape[axis]
        own = np.where(places < 0, places + size, places) if (places < 0).any() else places
        flat = own.reshape(-1)
        if places.ndim == 1 and places.size and np.array_equal(flat, flat[0] + np.arange(flat.size)):
            return x.narrow(axis, int(flat[0]), flat.size)
        index = torch.tensor(own.astype(np.int64), device=x.device)
        if isinstance(x, nn.Parameter) and x.dim() == 2 and axis == 0:
            return F.embedding(index, x)
        found = x.index_select(axis, index.reshape(-1))
        return found.unflatten(axis, places.shape) if places.ndim != 1 else found
    return _gather(x, places, axis=axis)


def _gather_elements(x: Tensor, places: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _positive(places, x, axis))


def _gather_nd(x: Tensor, places: Tensor, *, batch_dims: int = 0) -> Tensor:
    """`batch_dims` first axes are the same in both."""
    own = [_positive(one, x, batch_dims + axis) for axis, one in enumerate(places.unbind(-1))]
    rank = own[0].dim()
    ahead = [
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if at == axis else 1 for at in range(rank)])
        for axis in range(batch_dims)
    ]
    return x[(*ahead, *own)]


def _scatter_elements(x: Tensor, places: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    index = _positive(places, x, axis)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_nd(x: Tensor, places: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise NotReadError(f"reduction={reduction} is not read")
    index = tuple(_positive(one, x, axis) for axis, one in enumerate(places.unbind(-1)))
    return x.index_put(index, updates, accumulate=reduction == "add")


def _one_hot(places: Tensor, depth: Array, values: Array, *, axis: int = -1) -> Tensor:
    count = int(depth.reshape(-1)[0])
    off, on = values.reshape(-1).tolist()
    index = torch.where(places < 0, places + count, places).long()
    hot = index.unsqueeze(-1) == torch.arange(count, device=places.device)
    hot = hot.movedim(-1, axis if axis >= 0 else axis + places.dim() + 1)
    kind = torch.tensor(values[:0]).dtype
    return torch.where(hot, torch.tensor(on, dtype=kind), torch.tensor(off, dtype=kind))


ROWS = (
    Row("Gather", 1, _gather_at, known=(1,), sizes=_gather_sizes),
    Row("GatherElements", 11, _gather_elements),
    Row("GatherND", 11, _gather_nd),
    Row("ScatterElements", 11, _scatter_elements),
    Row("ScatterND", 11, _scatter_nd),
    Row("OneHot", 11, _one_hot, numbers=(1, 2)),
)
