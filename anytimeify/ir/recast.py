"""Types follow the precision of a model that was cast: `net.double()`, `net.bfloat16()`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from anytimeify._torch import copy_node
from anytimeify.ir.infer_types import UNKNOWN, TypeInferenceError, infer_type
from anytimeify.ir.node_meta import Type, tensor_type, type_of
from anytimeify.ir.program import Program
from anytimeify.ir.types import TensorType

__all__ = ["recast"]


def recast(program: Program) -> Program:
    """The same program with the types that it has in the precision of its tensors, which may have been cast since types
    were written; inputs are cast as the tensors of their precision are. The program itself where nothing was cast."""
    given: dict[fx.Node, Type] = {}
    cast: dict[torch.dtype, torch.dtype] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        kind, now = tensor_type(node), program.tensors[str(node.target)].dtype
        given[node] = replace(kind, dtype=now)
        if now != kind.dtype:
            cast[kind.dtype] = now
    if not cast:
        return program

    def in_precision(kind: Type) -> Type:
        if isinstance(kind, tuple):
            return tuple(map(in_precision, kind))
        return replace(kind, dtype=cast.get(kind.dtype, kind.dtype)) if isinstance(kind, TensorType) else kind

    def following(node: fx.Node) -> Type:
        if node.op != "call_function":
            return given[node] if node in given else in_precision(type_of(node))
        target: Any = node.target
        try:
            found = infer_type(target, node.args, node.kwargs, types.__getitem__)
        except TypeInferenceError:  # cast in part, so that it does not run: what runs it will say so
            found = UNKNOWN
        return in_precision(type_of(node)) if found is UNKNOWN else found

    types: dict[fx.Node, Type] = {}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = copy_node(graph, node, copies.__getitem__)
        if node.op != "output":
            types[node] = copies[node].meta["type"] = following(node)
    return replace(program, graph=graph)
