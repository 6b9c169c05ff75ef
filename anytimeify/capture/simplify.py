"""Removes operations that compute nothing, and writes different spellings of one operation in the same way.

    y = view(clone(x), [2, 8])      ->      y = reshape(x, [2, 8])

1. Assertions go. `alias`, `contiguous`, `clone`, `lift_fresh_copy`, conversions to the dtype that a tensor has, slices
   of everything, expansions and paddings by nothing, dropout that drops nothing, and `detach` of what has no gradient
   become their input.
2. `view` and `_unsafe_view` become `reshape`: `contiguous` is gone, so strides are nobody's business any more.
   `type_as` and the other conversions become `to.dtype`.
3. Calls without users go, random ones too.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload
from anytimeify.capture.work_graph import WorkGraph, fake, replace, step
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import bound
from anytimeify.rules.identities import changes_nothing, drops_nothing
from anytimeify.rules.spellings import instead_of
from anytimeify.rules.views import memory_of

__all__ = ["drop_identities", "eliminate_dead_code", "freeze_unread", "simplify"]

aten = torch.ops.aten


@step("drop identities")
def drop_identities(work: WorkGraph) -> None:
    """What returns its very input goes before aliases are looked at: idle dropout, views of everything."""
    for node in list(work.graph.nodes):
        if drops_nothing(node) or (memory_of(node.target) is not None and _changes_nothing(node)):
            replace(node, node.args[0])


@step("simplify")
def simplify(work: WorkGraph) -> None:
    """Applies 1 to 3 to a work graph without in-place operations."""
    gradients = _with_gradient(work)
    for node in list(work.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        instead = instead_of(node.target)
        if instead == "nothing":
            work.graph.erase_node(node)
        elif instead == "operand" or (instead == "operand without gradient" and node.args[0] not in gradients):
            replace(node, bound(node)["self"])
        elif instead == "conversion":
            _conversion(node)
        elif isinstance(instead, OpOverload):
            node.target = instead
        elif _changes_nothing(node):
            replace(node, node.args[0])
    eliminate_dead_code(work)


def eliminate_dead_code(work: WorkGraph) -> None:
    """Erases calls and tensor reads that have no users; nothing in a work graph has side effects any more."""
    for node in reversed(list(work.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            work.graph.erase_node(node)


@step("freeze unread")
def freeze_unread(work: WorkGraph) -> None:
    """Parameters that nothing reads ask for no gradient in our copy: distributed training would wait for it."""
    read = {id(work.tensors[str(node.target)]) for node in work.graph.find_nodes(op="get_attr")}
    unread = [
        name
        for name, tensor in work.tensors.items()
        if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad and id(tensor) not in read
    ]
    for name in unread:
        work.tensors[name].requires_grad_(False)
    if unread:
        shown = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        work.notes.append(f"parameters that the prediction does not read were kept and frozen: {shown}")


def _with_gradient(work: WorkGraph) -> set[fx.Node]:
    """Nodes that a gradient may flow through: from inputs and from parameters that require one."""
    found: set[fx.Node] = set()
    for node in work.graph.nodes:
        if node.op == "get_attr":
            if work.tensors[str(node.target)].requires_grad:
                found.add(node)
        elif node.op == "placeholder":
            if (value := fake(node)) is not None and value.dtype.is_floating_point:
                found.add(node)
        elif any(inner in found for inner in node.all_input_nodes):
            value = value_of(node)
            floating = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dtype.is_floating_point)
            if floating and instead_of(node.target) != "operand without gradient":
                found.add(node)
    return found


def _first(node: fx.Node) -> Tensor | None:
    """What the exporter recorded for the first argument."""
    source = node.args[0] if node.args else None
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


def _changes_nothing(node: fx.Node) -> bool:
    before, after = _first(node), fake(node)
    return changes_nothing(node, None if before is None else before.shape, None if after is None else after.shape)
