"""Whether two programs are one graph in eval mode: by what they say, and not by numbers."""

from __future__ import annotations

from typing import Any

from torch import fx

from anytimeify.ir import Program
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.rules import traits

__all__ = ["same_in_eval_mode"]


def same_in_eval_mode(one: Program, other: Program) -> bool:
    """Whether both compute the same from the same tensors, node by node in their order, once what only training needs
    is left out. What is written in another way is not the same, though it may compute the same."""
    return _lines(one) == _lines(other)


def _lines(program: Program) -> list[Any]:
    """What every node does, operands by the number of the node that gives them."""
    places: dict[fx.Node, int] = {}
    lines: list[Any] = []
    for node in evaluate(program).graph.nodes:
        if node.op == "get_attr" and not node.users:
            continue
        passed = traits(node).evaluation if node.op == "call_function" else None
        if passed is not None:
            places[node] = places[bound(node)[passed]]
            continue
        places[node] = len(lines)
        lines.append(_line(node, places))
    return lines


def _line(node: fx.Node, places: dict[fx.Node, int]) -> Any:
    if node.op != "call_function":
        arguments: Any = node.args
    else:
        training = traits(node).training
        arguments = {name: value for name, value in bound(node).items() if name != training}
    target = "" if node.op in ("placeholder", "output") else str(node.target)
    shown = fx.map_arg(arguments, lambda source: places[source])
    return node.op, target, str(shown), "" if node.op == "output" else str(type_of(node))
