"""Operators that make tensors of nothing but sizes and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.math import dtype_of_number
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import bounded, sizes_of, torch_dtype

__all__ = ["ROWS"]


def _constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if value_float is not None or value_floats is not None:
        return np.array(value_float if value_floats is None else value_floats, np.float32)
    if value_int is None and value_ints is None:
        raise NotReadError("it is a constant of a kind that is not read")
    return np.array(value_int if value_ints is None else value_ints, np.int64)


def _constant_of_shape(sizes: Array, *, value: Array | None = None) -> Any:
    number = np.zeros(1, np.float32) if value is None else value
    wanted = bounded(sizes_of(sizes))
    return torch.full(wanted, number.reshape(-1).tolist()[0], dtype=torch_dtype(number.dtype))


def _range(start: Array, limit: Array, delta: Array) -> Any:
    first, end, step = (value.reshape(-1).tolist()[0] for value in (start, limit, delta))
    if step == 0:
        raise NotReadError("its step is 0")
    if all(isinstance(one, int | float) for one in (first, end, step)):
        bounded([max(0, int(-((first - end) // step)))])
        return np.arange(first, end, step, dtype=start.dtype if start.dtype != object else np.int64)
    return torch.arange(first, end, step, dtype=torch.int64)


def _eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else dtype_of_number(dtype)
    return torch.ones_like(x, dtype=kind).triu(k).tril(k)


ROWS = (
    Row("Constant", 1, _constant),
    Row("ConstantOfShape", 9, _constant_of_shape, numbers=(0,)),
    Row("Range", 11, _range, numbers=(0, 1, 2)),
    Row("EyeLike", 9, _eye_like),
)
