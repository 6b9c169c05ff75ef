"""`evaluate`: what a program computes in eval mode, without what training does besides."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Program
from anytimeify.modes import AFTER, BY_MODE, UPDATE_BUFFER
from anytimeify.pass_manager import rewrite
from anytimeify.passes.project import project
from anytimeify.schema import bound

__all__ = ["evaluate"]

_AUTOGRAD_FUNCTION = torch.ops.anytimeify.autograd_function.default
_SAME: dict[Any, str] = {BY_MODE: "evaluation", UPDATE_BUFFER: "buffer", AFTER: "x"}


@rewrite("evaluate")
def evaluate(program: Program) -> Program:
    """A new program in which

    1. `by_mode` is its second operand, an updated buffer the buffer as it is, and `after` its first operand;
    2. results of an autograd function are those of the operations that compute the same;
    3. nothing is left that only training needed.

    Dropout, batch norms and their kin keep their training form: they become modules, which follow the mode. A program
    that has none of these is returned as it is.
    """
    if not any(node.target in _SAME or node.target is _AUTOGRAD_FUNCTION for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        same = _same(node)
        values[node] = values[same] if same is not None else graph.node_copy(node, values.__getitem__)
    whole = replace(program, graph=graph)
    return project(whole, range(len(whole.outputs)), keep_tensors=True)


def _same(node: fx.Node) -> fx.Node | None:
    """The node whose value this one has in eval mode."""
    if node.target in _SAME:
        found = bound(node)[_SAME[node.target]]
        assert isinstance(found, fx.Node)
        return found
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, fx.Node) and source.target is _AUTOGRAD_FUNCTION:
        traced: Any = bound(source)["traced"]
        return traced[node.args[1]]  # type: ignore[no-any-return]  # a list of nodes, by the schema
    return None
