"""Operators that work element by element: arithmetic, comparisons, logic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import array_of

__all__ = ["ROWS", "dtype_of_number"]

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def dtype_of_number(number: int) -> torch.dtype:
    """A dtype by its number in ONNX."""
    if number not in _DTYPES:
        raise NotReadError(f"the type with the number {number} is not read")
    return _DTYPES[number]


# Arithmetic. Operands may be plain numbers, and arrays of sizes.


def _integers(*values: Any) -> bool:
    return not any(isinstance(one, float) or (isinstance(one, Tensor) and one.is_floating_point()) for one in values)


def _divide(a: Any, b: Any) -> Any:
    if not _integers(a, b):
        return a / b
    if isinstance(a, Tensor):
        return torch.div(a, b, rounding_mode="trunc")
    return torch.div(torch.as_tensor(a, dtype=b.dtype), b, rounding_mode="trunc")


def _modulo(a: Any, b: Any, *, fmod: int = 0) -> Any:
    first = a if isinstance(a, Tensor) else torch.as_tensor(a, dtype=b.dtype)
    return torch.fmod(first, b) if fmod else torch.remainder(first, b)


def _power(a: Any, b: Any) -> Any:
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, Tensor) else result


def _where(condition: Any, a: Any, b: Any) -> Tensor:
    condition = torch.as_tensor(condition)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = torch.as_tensor(a)
    return torch.where(condition, a, b)


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: reduce(function, values)


def _extreme(limit: str) -> Callable[[Any, Any], Tensor]:
    """The larger or smaller one; with a number, that is a limit."""
    both = torch.maximum if limit == "min" else torch.minimum

    def function(a: Any, b: Any) -> Tensor:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return both(a, b)
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return torch.clamp(tensor, **{limit: number})

    return _pairwise(function)


def _mean(*values: Any) -> Any:
    return reduce(operator.add, values) / len(values)


def _clip(x: Tensor, least: Any = None, most: Any = None) -> Tensor:
    if least is None and most is None:
        return x
    if isinstance(least, Tensor) != isinstance(most, Tensor) and None not in (least, most):
        return torch.clamp(torch.clamp(x, min=least), max=most)
    return torch.clamp(x, least, most)


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(dtype_of_number(to))


def _cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    return x.to(like.dtype)


def _cast_sizes(x: Array, *, to: int, saturate: int = 1) -> Array:
    """Sizes are integers; as others they are numbers that torch computes with."""
    kind = dtype_of_number(to)
    if kind.is_floating_point:
        return array_of(np.frompyfunc(torch.sym_float, 1, 1)(x))
    if kind == torch.bool:
        return array_of(np.frompyfunc(bool, 1, 1)(x))
    return array_of(np.frompyfunc(lambda one: one if isinstance(one, torch.SymInt) else torch.sym_int(one), 1, 1)(x))


def _where_sizes(condition: Array, a: Array, b: Array) -> Array:
    return array_of(np.where(condition.astype(bool), a, b))


def _sizes(function: Callable[..., Any]) -> Callable[..., Array]:
    """A function of two sizes as one of arrays of them."""
    each = np.frompyfunc(function, 2, 1)
    return lambda *values: array_of(reduce(each, values))


_divided = _sizes(lambda a, b: a / b if isinstance(a, float | torch.SymFloat) else a // b)


def _is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


def _bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    return torch.bitwise_left_shift(x, y) if direction == "LEFT" else torch.bitwise_right_shift(x, y)


_binary = partial(Row, scalars=True)

ROWS = (
    # arithmetic
    _binary("Add", 7, operator.add, sizes=_sizes(operator.add)),
    _binary("Sub", 7, operator.sub, sizes=_sizes(operator.sub)),
    _binary("Mul", 7, operator.mul, sizes=_sizes(operator.mul)),
    _binary("Div", 7, _divide, sizes=_divided),
    _binary("Mod", 10, _modulo, sizes=_sizes(operator.mod)),
    _binary("Pow", 7, _power),
    _binary("Max", 8, _extreme("min"), sizes=_sizes(torch.sym_max)),
    _binary("Min", 8, _extreme("max"), sizes=_sizes(torch.sym_min)),
    _binary("Sum", 8, _pairwise(operator.add), sizes=_sizes(operator.add)),
    _binary("Mean", 8, _mean),
    _binary("Clip", 11, _clip),
    Row("Neg", 6, torch.neg, sizes=lambda x: array_of(-x)),
    Row("Abs", 6, torch.abs, sizes=lambda x: array_of(np.abs(x))),
    Row("Sign", 9, torch.sign),
    Row("Ceil", 6, torch.ceil, sizes=lambda x: array_of(np.frompyfunc(lambda one: math.ceil(one), 1, 1)(x))),
    Row("Floor", 6, torch.floor, sizes=lambda x: array_of(np.frompyfunc(lambda one: math.floor(one), 1, 1)(x))),
    Row("Round", 11, torch.round),
    Row("Reciprocal", 6, torch.reciprocal),
    Row("Sqrt", 6, torch.sqrt),
    Row("Exp", 6, torch.exp),
    Row("Log", 6, torch.log),
    Row("Erf", 9, torch.erf),
    Row("Sin", 7, torch.sin),
    Row("Cos", 7, torch.cos),
    Row("Tan", 7, torch.tan),
    Row("Asin", 7, torch.asin),
    Row("Acos", 7, torch.acos),
    Row("Atan", 7, torch.atan),
    Row("Sinh", 9, torch.sinh),
    Row("Cosh", 9, torch.cosh),
    Row("Asinh", 9, torch.asinh),
    Row("Acosh", 9, torch.acosh),
    Row("Atanh", 9, torch.atanh),
    Row("Identity", 1, lambda x: x, sizes=lambda x: x),
    Row("Cast", 9, _cast, sizes=_cast_sizes),
    Row("CastLike", 15, _cast_like),
    # comparisons and logic
    _binary("Equal", 7, operator.eq, sizes=_sizes(lambda a, b: bool(a == b))),
    _binary("Less", 9, operator.lt, sizes=_sizes(lambda a, b: bool(a < b))),
    _binary("LessOrEqual", 12, operator.le, sizes=_sizes(lambda a, b: bool(a <= b))),
    _binary("Greater", 9, operator.gt, sizes=_sizes(lambda a, b: bool(a > b))),
    _binary("GreaterOrEqual", 12, operator.ge, sizes=_sizes(lambda a, b: bool(a >= b))),
    Row("And", 7, torch.logical_and),
    Row("Or", 7, torch.logical_or),
    Row("Xor", 7, torch.logical_xor),
    Row("Not", 1, torch.logical_not),
    Row("IsNaN", 9, torch.isnan),
    Row("IsInf", 10, _is_inf),
    Row("BitwiseAnd", 18, torch.bitwise_and),
    Row("BitwiseOr", 18, torch.bitwise_or),
    Row("BitwiseXor", 18, torch.bitwise_xor),
    Row("BitwiseNot", 18, torch.bitwise_not),
    Row("BitShift", 11, _bit_shift),
    _binary("Where", 9, _where, sizes=_where_sizes),
)
