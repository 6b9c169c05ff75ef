"""`evaluate`: what a program computes in eval mode, without the operations that only training needs.

    y = by_mode(a, b)                       ->      y = b
    y = after(x, [update_buffer(b, v)])     ->      y = x

Dropout and batch norms stay; as modules they follow the mode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Program, result_of
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.project import project
from anytimeify.rules import has_kind, traits

__all__ = ["evaluate"]


@rewrite("evaluate")
def evaluate(program: Program) -> Program:
    """A new program in which

    1. `by_mode` is its second operand, an updated buffer the buffer as it is, and `after` its first operand;
    2. results of an autograd function are those of the operations that compute the same;
    3. nothing is left that only training needed.

    Dropout, batch norms and their kin keep their training form: they become modules, which follow the mode. A program
    that has none of these is returned as it is.
    """
    if not any(has_kind(node, "choice", "mode", "autograd function") for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        same = _same(node)
        values[node] = values[same] if same is not None else copy_node(graph, node, values.__getitem__)
    whole = replace(program, graph=graph)
    return project(whole, range(len(whole.outputs)), keep_tensors=True)


def _same(node: fx.Node) -> fx.Node | None:
    """The node whose value this one has in eval mode."""
    evaluation = traits(node).evaluation if has_kind(node, "choice", "mode") else None
    if evaluation is not None:
        found = bound(node)[evaluation]
        assert isinstance(found, fx.Node)
        return found
    source = result_of(node)
    if source is not None and has_kind(source, "autograd function"):
        traced: Any = bound(source)["traced"]
        return traced[node.args[1]]  # type: ignore[no-any-return]  # a list of nodes, by the schema
    return None
