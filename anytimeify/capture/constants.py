"""Frees the graph of the device that it was exported on.

    y = add(x, arange(8, device=cpu))       ->      y = add(x, anytime.constants.arange)

An exported graph writes `arange(8, device=cpu)`, and would break on any other device than that of the capture.

1. What is computed from nothing but numbers (`arange`, and what is made of it alone) becomes a buffer,
   `anytime.constants.<name>`, which moves with the module.
2. `zeros`, `ones`, `full`, `empty` become their `new_` form of an input or parameter; `rand` and `randn` a random
   `*_like` of that. `arange` of a dynamic size becomes a running sum of ones. First states of a recurrent layer have
   the type of what it reads, as `nn.LSTM` makes them, so that the network may be cast.
3. Other operations lose a `device` argument where that means "as the input".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload
from anytimeify.capture.simplify import eliminate_dead_code
from anytimeify.capture.work_graph import WorkGraph, fake, insert, replace, step
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import bound, is_mutable
from anytimeify.rules.create import counts_up, filled_with, has_known_values, is_uninitialised, like_form
from anytimeify.rules.table import has_kind
from anytimeify.rules.training import is_random

__all__ = ["free_of_device"]

aten = torch.ops.aten

_LARGEST = 2**24  # elements of a constant; what is larger is computed anew each time


@step("free of device")
def free_of_device(work: WorkGraph) -> None:
    """Applies 1 to 3 to the work graph."""
    _fold(work)
    reference = _reference(work)
    if reference is None:
        return
    for node in list(work.graph.nodes):
        if node.op == "call_function" and _freed(node, reference):
            continue
        if isinstance(node.target, OpOverload) and "device" in node.kwargs and bound(node).get("self") is not None:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in ("device", "pin_memory")}
    eliminate_dead_code(work)


def _fold(work: WorkGraph) -> None:
    """Computes what depends on numbers alone. Uniform factories stay as they are unless something is made of them."""
    known: dict[fx.Node, Any] = {}
    for node in work.graph.nodes:
        if node.op == "call_function" and _foldable(node, known):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda inner: known[inner])
            known[node] = node.target(*args, **{**kwargs, **({"device": "cpu"} if kwargs.get("device") else {})})
    for node, value in known.items():
        if isinstance(value, Tensor) and filled_with(node) is None and any(user not in known for user in node.users):
            device = fake(node).device  # type: ignore[union-attr]  # the value is one tensor
            node.replace_all_uses_with(work.constant(node.name, value.contiguous().to(device)))
    eliminate_dead_code(work)


def _foldable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    if not (all(inner in known for inner in inputs) if inputs else has_known_values(node)):
        return False
    return not is_random(node.target) and not is_mutable(node.target) and _elements(node) <= _LARGEST


def _elements(node: fx.Node) -> int:
    """The elements of a node's value; of a dynamic size, more than any constant may have."""
    value = value_of(node)
    parts = value if isinstance(value, (list, tuple)) else [value]
    counts: list[Any] = [part.numel() for part in parts if isinstance(part, Tensor)]
    return max((count if isinstance(count, int) else _LARGEST + 1 for count in counts), default=0)


def _reference(work: WorkGraph) -> fx.Node | None:
    """A tensor that is on the device of the computation: the first input, or a parameter."""
    nodes = [node for node in work.graph.nodes if node.op in ("placeholder", "get_attr") and fake(node) is not None]
    return nodes[0] if nodes else None


def _freed(node: fx.Node, reference: fx.Node) -> bool:
    """Whether the call had another form that names no device, and has got it."""
    if filled_with(node) is not None:
        _fill(node, reference)
    elif counts_up(node):
        _arange(node, reference)
    elif (like := like_form(node.target)) is not None:
        replace(node, insert(node, like, _empty(node, reference)))
    elif is_uninitialised(node) and not node.all_input_nodes:
        replace(node, _empty(node, reference))
    else:
        return False
    return True


def _fill(node: fx.Node, reference: fx.Node) -> None:
    value = fake(node)
    assert value is not None
    size, number = bound(node).get("size", []), filled_with(node)
    layer = next(iter(node.users)) if len(node.users) == 1 else node
    if has_kind(layer, "recurrent"):
        for read in (reference, bound(layer)["input"]):
            if getattr(fake(read), "dtype", None) == value.dtype:
                replace(node, insert(layer, aten.new_full.default, read, size, number, val=value))
                return
    replace(node, insert(node, aten.new_full.default, reference, size, number, dtype=value.dtype))


def _empty(node: fx.Node, reference: fx.Node) -> fx.Node:
    value = fake(node)
    assert value is not None
    return insert(node, aten.new_empty.default, reference, bound(node)["size"], dtype=value.dtype)


def _arange(node: fx.Node, reference: fx.Node) -> None:
    values, value = bound(node), fake(node)
    assert value is not None
    start, step = values.get("start", 0), values.get("step", 1)
    if start != 0 or step != 1 or value.dtype.is_floating_point or not isinstance(values["end"], fx.Node):
        node.kwargs = {name: kept for name, kept in node.kwargs.items() if name != "pin_memory"}
        return
    ones = insert(node, aten.new_ones.default, reference, [values["end"]], dtype=value.dtype)
    count = insert(node, aten.cumsum.default, ones, 0, dtype=value.dtype)
    replace(node, insert(node, aten.sub.Tensor, count, 1))
