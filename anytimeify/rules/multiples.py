"""Which arguments a result is a multiple of, or a fraction: numbers that may have been made of a channel count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx

from anytimeify.ir.schema import bound

__all__ = ["numbers_in"]

aten = torch.ops.aten

_ARGUMENTS: Mapping[object, str] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar), "other"),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.divide.Scalar), "other"),
    **dict.fromkeys((aten.true_divide.Tensor, aten.true_divide.Scalar), "other"),
    aten.scaled_dot_product_attention.default: "scale",
    aten.baddbmm.default: "alpha",
}


def numbers_in(node: fx.Node) -> Iterator[tuple[str, int | float]]:
    """The numbers that a call multiplies or divides by, by the argument that holds them; 1 changes nothing."""
    argument = _ARGUMENTS.get(node.target)
    value: object = bound(node).get(argument) if argument is not None else None
    if argument is not None and isinstance(value, int | float) and type(value) is not bool and abs(value) != 1:
        yield argument, value
