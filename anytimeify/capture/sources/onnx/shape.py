"""Operators that ask for sizes, and those that rearrange elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import array_of, bounded, sizes_of, tensor_of

__all__ = ["ROWS"]

# Sizes.


def _shape(x: Any, *, start: int = 0, end: int | None = None) -> Array:
    return array_of(list(x.shape)[start:end])


def _size(x: Any) -> Array:
    count: Any = 1
    for size in x.shape:
        count = count * size
    return array_of([count]).reshape(())


# Other shapes of the same elements.


def _target(shape: Sequence[Any], target: Array, *, allowzero: int = 0) -> list[Any]:
    """A 0 keeps the size."""
    wanted = sizes_of(target)
    if allowzero:
        return wanted
    return [shape[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(wanted)]


def _reshape(x: Tensor, target: Array, *, allowzero: int = 0) -> Tensor:
    sizes = _target(x.shape, target, allowzero=allowzero)
    kept = len(sizes) >= 1 and x.dim() >= 1 and target.dtype != object and sizes_of(target)[0] == 0 and not allowzero
    if kept and all(isinstance(size, int) for size in sizes[1:]) and sizes[1:] == [-1]:
        return x.flatten(1)  # the same, for any batch
    return x.reshape(sizes)


def _reshape_sizes(x: Array, target: Array, *, allowzero: int = 0) -> Array:
    return x.reshape(_target(x.shape, target, allowzero=allowzero))


def _reshape_batch(x: Tensor, like: Tensor, *, target: list[int], axis: int, of: int) -> Tensor:
    """To a shape that was written for a batch of `of` samples, which `axis` holds; ours, see `batch`."""
    sizes: list[Any] = list(target)
    sizes[axis] = target[axis] // of * like.shape[0]
    return x.reshape(sizes)


def _expand_batch(x: Tensor, like: Tensor, *, axis: int) -> Tensor:
    """One sample's tensor for every sample of `like`; ours, see `batch`."""
    sizes: list[Any] = [-1] * x.dim()
    sizes[axis] = like.shape[0]
    return x.narrow(axis, 0, 1).expand(sizes)


def _expand_to(x: Tensor, *, target: list[int]) -> Tensor:
    """To sizes, -1 where its own is kept; ours, see `batch`."""
    return x.expand(target)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    first = axis + x.dim() if axis < 0 else axis
    if first == 1:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    if first == 0:
        return x.reshape(1, -1)
    rest = x.flatten(first) if first < x.dim() else x.unsqueeze(-1)
    return rest.flatten(0, first - 1)


def _axes(given: Any) -> list[int] | None:
    return given if given is None or isinstance(given, list) else [int(axis) for axis in given.reshape(-1)]


def _squeeze(x: Any, axes: Any = None) -> Any:
    chosen = _axes(axes)
    known = isinstance(x, np.ndarray)
    if chosen is None:
        chosen = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    places = tuple(axis % len(x.shape) for axis in chosen)
    if known:
        return array_of(np.squeeze(x, places))
    if any(isinstance(x.shape[axis], int) and x.shape[axis] != 1 for axis in places):
        raise NotReadError(f"it takes away axes {list(places)} of a tensor of {'x'.join(map(str, x.shape))}")
    return x.squeeze(places)


def _unsqueeze(x: Any, axes: Any) -> Any:
    chosen = _axes(axes) or []
    rank = len(x.shape) + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = np.expand_dims(x, axis) if isinstance(x, np.ndarray) else x.unsqueeze(axis)
    return x


def _squeeze_by(x: Any, *, axes: list[int] | None = None) -> Any:
    return _squeeze(x, axes)


def _unsqueeze_by(x: Any, *, axes: list[int]) -> Any:
    return _unsqueeze(x, axes)


def _transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


def _transpose_sizes(x: Array, *, perm: list[int] | None = None) -> Array:
    return x.transpose(perm)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, channels, height, width = x.shape
    own = channels // blocksize**2
    parts = x.reshape(n, blocksize, blocksize, own, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, own, height * blocksize, width * blocksize)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, channels, height, width = x.shape
    parts = x.reshape(n, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * blocksize**2, height // blocksize, width // blocksize)


# Parts, and what is put together.


def _concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def _concat_sizes(*parts: Array, axis: int) -> Array:
    return array_of(np.concatenate(parts, axis))


def _slice(x: Any, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Any:
    """As slices of Python, in which an end below the start of the axis means that nothing is left out there."""
    index: list[Any] = [slice(None)] * len(x.shape)
    chosen = list(range(starts.size)) if axes is None else sizes_of(axes)
    jumps = [1] * starts.size if steps is None else sizes_of(steps)
    for start, end, axis, step in zip(sizes_of(starts), sizes_of(ends), chosen, jumps, strict=True):
        if step > 0 or isinstance(x, np.ndarray):
            index[axis] = _span(start, end, step, x.shape[axis])
        else:
            places = range(x.shape[axis])[_span(start, end, step, x.shape[axis])]
            whole = step == -1 and len(places) == x.shape[axis]
            x = x.flip(axis) if whole else x.index_select(axis, torch.tensor(list(places), device=x.device))
    if isinstance(x, np.ndarray):
        return array_of(x[tuple(index)])
    return x[tuple(index)] if any(one != slice(None) for one in index) else x


def _span(start: Any, end: Any, step: int, size: Any) -> slice:
    large = 10**8  # exporters write the largest and smallest integers, or 999999999, for the ends of an axis
    if isinstance(end, int) and step < 0 and isinstance(size, int) and end < -size:
        end = None
    if isinstance(end, int) and end >= large:
        end = None
    if isinstance(end, int) and step > 0:
        end = max(end, -large)  # nothing is left; torch warns of the smallest integer
    if isinstance(start, int) and start >= large:
        start = None if step < 0 else start
    if isinstance(start, int) and start <= -large and step > 0:
        start = None
    return slice(None if start == 0 and step > 0 else start, end, None if step == 1 else step)


def _split(x: Tensor, sizes: Any = None, *, outputs: int, axis: int = 0, num_outputs: int | None = None) -> Any:
    if sizes is not None:
        return x.split(sizes if isinstance(sizes, list) else sizes_of(sizes), axis)
    total, count = x.shape[axis], num_outputs or outputs
    return x.split(-(-total // count), axis)


def _split_by(x: Tensor, *, outputs: int, axis: int = 0, split: list[int] | None = None) -> Any:
    return _split(x, split, outputs=outputs, axis=axis)


def _split_of_sizes(x: Array, sizes: Any = None, *, outputs: int, axis: int = 0, num_outputs: int | None = None) -> Any:
    own = [-(-x.shape[axis] // outputs)] * (outputs - 1) if sizes is None else sizes_of(np.asarray(sizes))[:-1]
    return tuple(array_of(one) for one in np.split(x, np.cumsum(own), axis))


def _split_of_sizes_by(x: Array, *, outputs: int, axis: int = 0, split: list[int] | None = None) -> Any:
    return _split_of_sizes(x, None if split is None else np.array(split), outputs=outputs, axis=axis)


def _expand(x: Any, target: Array) -> Any:
    """Both ways: a 1 in the target keeps the size."""
    wanted = bounded(sizes_of(target))
    rank = max(len(wanted), len(x.shape))
    wanted, own = (1,) * (rank - len(wanted)) + wanted, (1,) * (rank - len(x.shape)) + tuple(x.shape)
    sizes = [mine if isinstance(size, int) and size == 1 else size for mine, size in zip(own, wanted, strict=True)]
    if isinstance(x, np.ndarray) and all(isinstance(size, int) for size in sizes):
        return np.broadcast_to(x, sizes)
    return (tensor_of(x) if isinstance(x, np.ndarray) else x).expand(sizes)


def _tile(x: Any, repeats: Array) -> Any:
    times = sizes_of(repeats)
    bounded([size * count for size, count in zip(x.shape, times, strict=True)])
    if isinstance(x, np.ndarray) and all(isinstance(count, int) for count in times):
        return array_of(np.tile(x, times))
    return (tensor_of(x) if isinstance(x, np.ndarray) else x).repeat(times)


def _trilu(x: Tensor, k: Array | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return x.triu(diagonal) if upper else x.tril(diagonal)


ROWS = (
    # sizes
    Row("Shape", 1, _shape, sizes=_shape),
    Row("Size", 1, _size, sizes=_size),
    # other shapes of the same elements
    Row("Reshape", 5, _reshape, numbers=(1,), sizes=_reshape_sizes),
    Row("ReshapeBatch", 1, _reshape_batch),
    Row("ExpandBatch", 1, _expand_batch),
    Row("ExpandTo", 1, _expand_to),
    Row("Flatten", 9, _flatten),
    Row("Squeeze", 11, _squeeze_by, sizes=_squeeze_by),
    Row("Squeeze", 13, _squeeze, numbers=(1,), sizes=_squeeze),
    Row("Unsqueeze", 11, _unsqueeze_by, sizes=_unsqueeze_by),
    Row("Unsqueeze", 13, _unsqueeze, numbers=(1,), sizes=_unsqueeze),
    Row("Transpose", 1, _transpose, sizes=_transpose_sizes),
    Row("DepthToSpace", 11, _depth_to_space),
    Row("SpaceToDepth", 1, _space_to_depth),
    # parts, and what is put together
    Row("Concat", 4, _concat, sizes=_concat_sizes),
    Row("Slice", 10, _slice, numbers=(1, 2, 3, 4), sizes=_slice),
    Row("Split", 2, _split_by, sizes=_split_of_sizes_by),
    Row("Split", 13, _split, numbers=(1,), sizes=_split_of_sizes),
    Row("Expand", 8, _expand, numbers=(1,), sizes=_expand),
    Row("Tile", 6, _tile, numbers=(1,), sizes=_tile),
    Row("Trilu", 14, _trilu, numbers=(1,)),
)
