"""Removes what computes nothing, and writes operations that differ only in spelling in one way.

1. Assertions go. `alias`, `contiguous`, `clone`, `lift_fresh_copy`, conversions to the dtype that a tensor has, slices
   of everything, expansions and paddings by nothing, dropout that drops nothing, and `detach` of what has no gradient
   become their input.
2. `view` and `_unsafe_view` become `reshape`: `contiguous` is gone, so strides are nobody's business any more.
   `type_as` and the other conversions become `to.dtype`.
3. Calls without users go, random ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload, schema
from anytimeify.capture.draft import Draft, fake, replace, step
from anytimeify.node_meta import value_of
from anytimeify.schema import bound

__all__ = ["drop_identities", "eliminate_dead_code", "freeze_unread", "simplify"]

aten = torch.ops.aten

_ASSERTIONS = {
    "aten::_assert_async", "aten::_assert_scalar", "aten::_assert_tensor_metadata", "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
}  # fmt: skip
_DROPOUTS = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default, aten.feature_alpha_dropout.default,
}  # fmt: skip
_CONVERSIONS = {"aten::to", "aten::_to_copy", "aten::type_as", "aten::to_copy"}
_MEMORY = {"aten::alias", "aten::contiguous", "aten::clone", "aten::lift_fresh_copy", "aten::lift_fresh", "aten::lift"}


@step("drop identities")
def drop_identities(draft: Draft) -> None:
    """What returns its very input goes before aliases are looked at: idle dropout, views of everything."""
    for node in list(draft.graph.nodes):
        idle = node.target in _DROPOUTS and (bound(node)["p"] == 0 or not bound(node)["train"])
        view = node.target in _WHOLE_VIEWS and _WHOLE_VIEWS[node.target](node)
        if idle or view:
            replace(node, node.args[0])


@step("simplify")
def simplify(draft: Draft) -> None:
    """Applies 1 to 3 to a draft without in-place operations."""
    gradients = _with_gradient(draft)
    for node in list(draft.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        name = schema(node.target).name
        if name in _ASSERTIONS:
            draft.graph.erase_node(node)
        elif name in _MEMORY or (name == "aten::detach" and node.args[0] not in gradients):
            replace(node, bound(node)["self"] if "self" in bound(node) else node.args[0])
        elif name in _CONVERSIONS:
            _conversion(node)
        elif node.target in _SPELLINGS:
            node.target = _SPELLINGS[node.target]
        elif (rule := _NO_OPERATION.get(node.target)) and rule(node):
            replace(node, node.args[0])
    eliminate_dead_code(draft)


def eliminate_dead_code(draft: Draft) -> None:
    """Erases calls and tensor reads that have no users; nothing in a draft has side effects any more."""
    for node in reversed(list(draft.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            draft.graph.erase_node(node)


@step("freeze unread")
def freeze_unread(draft: Draft) -> None:
    """Parameters that nothing reads ask for no gradient in our copy: distributed training would wait for it."""
    read = {id(draft.tensors[str(node.target)]) for node in draft.graph.find_nodes(op="get_attr")}
    unread = [
        name
        for name, tensor in draft.tensors.items()
        if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad and id(tensor) not in read
    ]
    for name in unread:
        draft.tensors[name].requires_grad_(False)
    if unread:
        shown = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        draft.notes.append(f"parameters that the prediction does not read were kept and frozen: {shown}")


def _with_gradient(draft: Draft) -> set[fx.Node]:
    """Nodes that a gradient may flow through: from inputs and from parameters that require one."""
    found: set[fx.Node] = set()
    for node in draft.graph.nodes:
        if node.op == "get_attr":
            if draft.tensors[str(node.target)].requires_grad:
                found.add(node)
        elif node.op == "placeholder":
            if (value := fake(node)) is not None and value.dtype.is_floating_point:
                found.add(node)
        elif any(inner in found for inner in node.all_input_nodes):
            value = value_of(node)
            floating = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dtype.is_floating_point)
            if floating and node.target is not aten.detach.default:
                found.add(node)
    return found


def _first(node: fx.Node) -> Tensor | None:
    """What the exporter recorded for the first argument."""
    source = node.args[0]
    return fake(source) if isinstance(source, fx.Node) else None


def _conversion(node: fx.Node) -> None:
    before, after = _first(node), fake(node)
    assert before is not None
    assert after is not None
    if before.dtype == after.dtype:
        replace(node, bound(node)["self"])
        return
    node.target = aten.to.dtype
    node.args, node.kwargs = (node.args[0], after.dtype), {}


_SPELLINGS: dict[Any, OpOverload] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__and__.Scalar: aten.bitwise_and.Scalar,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Scalar,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}


def _is_whole(node: fx.Node) -> bool:
    values, before, after = bound(node), _first(node), fake(node)
    if before is None or after is None or values["step"] != 1 or values["start"] not in (None, 0):
        return False
    dim = values["dim"] % before.dim()
    return values["end"] is None or (values["end"] == 2**63 - 1) or bool(_equal(before.shape[dim], after.shape[dim]))


def _keeps_shape(node: fx.Node) -> bool:
    before, after = _first(node), fake(node)
    return (
        before is not None
        and after is not None
        and before.dim() == after.dim()
        and all(map(_equal, before.shape, after.shape))
    )


def _equal(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    return str(a) == str(b)  # never asks the exporter's solver, which would add a guard


def _pads_nothing(node: fx.Node) -> bool:
    return all(amount == 0 for amount in bound(node)["pad"])


def _permutes_nothing(node: fx.Node) -> bool:
    dims = bound(node)["dims"]
    return [dim % len(dims) for dim in dims] == list(range(len(dims)))


_WHOLE_VIEWS: dict[Any, Callable[[fx.Node], bool]] = {
    aten.slice.Tensor: _is_whole,
    aten.expand.default: _keeps_shape,
    aten.expand_as.default: _keeps_shape,
    aten.reshape.default: _keeps_shape,
    aten.reshape_as.default: _keeps_shape,
    aten.flatten.using_ints: _keeps_shape,
    aten.squeeze.default: _keeps_shape,
    aten.squeeze.dim: _keeps_shape,
    aten.view.default: _keeps_shape,
    aten.view_as.default: _keeps_shape,
    aten.permute.default: _permutes_nothing,
}
_NO_OPERATION: dict[Any, Callable[[fx.Node], bool]] = {
    **_WHOLE_VIEWS,
    aten.pad.default: _pads_nothing,
    aten.constant_pad_nd.default: _pads_nothing,
}
