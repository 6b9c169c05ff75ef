"""Values while a network runs: tensors, and numbers that are known without running it.

A known value is an array of numpy: a constant, or sizes. An array of objects holds sizes of which some depend on the
batch; while torch exports, those are symbols, and arithmetic with them is arithmetic with symbols. Everything else is a
tensor of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError

__all__ = ["array_of", "bounded", "is_symbolic", "single", "sizes_of", "tensor_of", "torch_dtype"]

_LARGEST = 1 << 28  # elements of a tensor that a node makes of nothing but sizes

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
}


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """`NotReadError` where torch has none of the kind."""
    if dtype.name not in _DTYPES:
        raise NotReadError(f"tensors of {dtype.name} are not read")
    return _DTYPES[dtype.name]


def is_symbolic(value: Any) -> bool:
    """Whether a value is an array of sizes of which some may depend on the batch."""
    return isinstance(value, np.ndarray) and value.dtype == object


def array_of(value: Any) -> Array:
    """A size or a list of them as an array: of integers where all are plain numbers.

    numpy is not asked to make an array of a symbol, for it would make a number of it."""
    if isinstance(value, np.ndarray):
        parts: Array = value
    elif isinstance(value, Sequence):
        parts = np.empty(len(value), object)
        parts[:] = value
    else:
        parts = np.empty((), object)
        parts[()] = value
    if parts.dtype == object and all(type(one) in (int, bool) for one in parts.flat):
        kind = bool if parts.size and all(type(one) is bool for one in parts.flat) else np.int64
        return np.array(parts.tolist(), kind).reshape(parts.shape)
    return parts


def tensor_of(array: Array) -> Tensor:
    """A known value as a tensor of its own."""
    if array.dtype == object:
        if not array.ndim:
            return torch.scalar_tensor(array.item(), dtype=torch.int64)
        parts = [torch.scalar_tensor(one, dtype=torch.int64) for one in array.flat]
        return torch.stack(parts).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(np.array(array, order="C"), dtype=torch_dtype(array.dtype))


def single(value: Any) -> Any:
    """A known value of one element as a number."""
    return value.reshape(-1).tolist()[0]


def sizes_of(array: Array) -> list[Any]:
    """Sizes as a list; an array without dimensions is one size."""
    found: list[Any] = array.reshape(-1).tolist()
    return found


def bounded(sizes: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes of a tensor that is made of nothing; `NotReadError` for what no network needs."""
    known = [size for size in sizes if isinstance(size, int)]
    if any(size < 0 for size in known) or math.prod(known) > _LARGEST:
        raise NotReadError(f"it makes a tensor of {'x'.join(map(str, sizes))} elements")
    return tuple(sizes)
