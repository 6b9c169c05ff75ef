"""Operations that the canonical form does not have, and what it says instead.

Two operations that mean the same to a functional graph have one spelling there. A new spelling is a row here: capture
writes it as the table says, and no canonical graph may hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from anytimeify._torch import OpOverload, schema
from anytimeify.rules.op import Call

__all__ = ["Instead", "gives_its_operand", "instead_of", "is_noncanonical", "left_by"]

aten = torch.ops.aten

Instead: TypeAlias = Literal["nothing", "operand", "operand without gradient", "conversion"]

# By name, for all overloads. Memory, devices and assertions mean nothing in a functional graph. `detach` is its operand
# where no gradient comes from, and a conversion is one to another dtype: `to.dtype`.
_BY_NAME: Mapping[str, Instead] = {
    "aten::_assert_async": "nothing",
    "aten::_assert_scalar": "nothing",
    "aten::_assert_tensor_metadata": "nothing",
    "aten::sym_constrain_range": "nothing",
    "aten::sym_constrain_range_for_size": "nothing",
    "aten::alias": "operand",
    "aten::clone": "operand",
    "aten::contiguous": "operand",
    "aten::lift": "operand",
    "aten::lift_fresh": "operand",
    "aten::lift_fresh_copy": "operand",
    "aten::detach": "operand without gradient",
    "aten::_to_copy": "conversion",
    "aten::to": "conversion",
    "aten::type_as": "conversion",
}
# Strides are nobody's business in a functional graph, so that a view is a reshape.
_RENAMED: Mapping[object, OpOverload] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__and__.Scalar: aten.bitwise_and.Scalar,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Scalar,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}
_CANONICAL = {"aten::detach", "aten::to"}  # what some calls of these become


def instead_of(target: object) -> Instead | OpOverload | None:
    """What the canonical form says instead of an operation; an operation where only the name changes, None where the
    operation is canonical."""
    if not isinstance(target, OpOverload):
        return None
    return _RENAMED.get(target) or _BY_NAME.get(schema(target).name)


def is_noncanonical(target: object) -> bool:
    """Whether no canonical graph calls an operation."""
    return instead_of(target) is not None and schema(target).name not in _CANONICAL  # type: ignore[arg-type]


def gives_its_operand(target: object) -> bool:
    """Whether an operation gives the values that it gets, in whatever memory and type."""
    return instead_of(target) in ("operand", "operand without gradient", "conversion")


def left_by(target: OpOverload, given: Mapping[str, Any]) -> Call | None:
    """What an operation in place leaves in the tensor that it writes to, where that is no operation of the same name;
    None elsewhere. `given`: its arguments by name."""
    rule = _IN_PLACE.get(schema(target).name)
    return rule(given) if rule is not None else None


def _bernoulli(given: Mapping[str, Any]) -> Call | None:
    if "p" not in given or isinstance(given["p"], fx.Node):
        return None
    return Call(aten.bernoulli.p, {"self": given["self"], "p": given["p"]})


def _fill(given: Mapping[str, Any]) -> Call | None:
    if isinstance(given["value"], fx.Node):
        return None
    return Call(aten.full_like.default, {"self": given["self"], "fill_value": given["value"]})


_IN_PLACE: Mapping[str, Callable[[Mapping[str, Any]], Call | None]] = {
    "aten::bernoulli_": _bernoulli,
    "aten::fill_": _fill,
    "aten::normal_": lambda given: Call(aten.normal_functional.default, dict(given)),
    "aten::zero_": lambda given: Call(aten.zeros_like.default, {"self": given["self"]}),
}
