"""Which calls give their first operand as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from anytimeify._torch import OpOverload, functional_overload, schema
from anytimeify.ir.schema import bound, is_mutable
from anytimeify.rules.table import has_kind, rule_of
from anytimeify.rules.training import training_flag

__all__ = ["changes_nothing", "drops_nothing"]

aten = torch.ops.aten

Shape: TypeAlias = Sequence[Any]
"""Sizes, which are compared as text: the exporter's solver is never asked, for it would add a guard."""
Test: TypeAlias = Callable[[Mapping[str, Any], Shape, Shape], bool]
"""Of the arguments of a call, and the shapes of its first operand and of its result."""


def _keeps_shape(given: Mapping[str, Any], before: Shape, after: Shape) -> bool:
    return list(map(str, before)) == list(map(str, after))


def _is_whole(given: Mapping[str, Any], before: Shape, after: Shape) -> bool:
    if given["step"] != 1 or given["start"] not in (None, 0):
        return False
    dim = given["dim"] % len(before)
    return given["end"] is None or given["end"] == 2**63 - 1 or str(before[dim]) == str(after[dim])


def _permutes_nothing(given: Mapping[str, Any], before: Shape, after: Shape) -> bool:
    dims = given["dims"]
    return [dim % len(dims) for dim in dims] == list(range(len(dims)))


def _pads_nothing(given: Mapping[str, Any], before: Shape, after: Shape) -> bool:
    return all(amount == 0 for amount in given["pad"])


# Besides reshapes, which change nothing where they keep the shape.
_TESTS: Mapping[object, Test] = {
    aten.broadcast_to.default: _keeps_shape,
    aten.constant_pad_nd.default: _pads_nothing,
    aten.expand.default: _keeps_shape,
    aten.expand_as.default: _keeps_shape,
    aten.pad.default: _pads_nothing,
    aten.permute.default: _permutes_nothing,
    aten.slice.Tensor: _is_whole,
}


def changes_nothing(node: fx.Node, before: Shape | None, after: Shape | None) -> bool:
    """Whether a call, which makes `after` of a first operand of shape `before`, gives what it gets."""
    test = _TESTS.get(node.target, _keeps_shape if has_kind(node, "reshape") else None)
    return test is not None and before is not None and after is not None and test(bound(node), before, after)


def drops_nothing(node: fx.Node) -> bool:
    """Whether a call is a dropout, in place or not, that keeps everything: its very operand is the result."""
    flag, target = training_flag(node.target), node.target
    if flag is None or not isinstance(target, OpOverload) or len(schema(target).returns) > 1:
        return False
    rule = rule_of(functional_overload(target) if is_mutable(target) else target)
    if rule is None or rule.kind != "dropout":
        return False
    given = bound(node)
    return given["p"] == 0 or not given[flag]
