"""Cuts of several tensors, for networks whose data flows through parallel paths from end to end.

Where no single tensor carries everything (two towers that exchange tokens), a few together may: a minimum vertex
separator of the graph of activations, by maximum flow, wanted near a given share of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx
from networkx.algorithms.flow import shortest_augmenting_path
from torch import fx

from anytimeify.analysis.blocks import data_nodes
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.ir import Captured, Program, TensorType
from anytimeify.ir.node_meta import type_of

__all__ = ["separators"]

_LARGEST = 4  # tensors in one cut
_FAR = _LARGEST + 1  # what a tensor away from the wanted place counts as


def separators(captured: Captured, count: int) -> list[tuple[fx.Node, ...]] | None:
    """`count` cuts, one after the other, between which the network costs about the same; None where there are none of
    few tensors."""
    program = captured.program
    nodes = data_nodes(program)
    shares = _shares(captured, nodes)
    half = 0.4 / (count + 1)
    cuts = []
    for number in range(1, count + 1):
        wanted = number / (count + 1)
        near = {node for node in nodes if abs(shares[node] - wanted) <= half and _can_be_cut(program, node)}
        cut = _minimum(program, nodes, near)
        if cut is None:
            return None
        cuts.append(cut)
    return cuts


def _shares(captured: Captured, nodes: Mapping[fx.Node, None]) -> dict[fx.Node, float]:
    """How much of the cost lies before a node, in graph order."""
    macs = macs_by_node(captured.program, captured.batch, *sizes(captured))
    total, spent = max(1, sum(macs.values())), 0
    shares = {}
    for node in nodes:
        spent += macs.get(node, 0)
        shares[node] = spent / total
    return shares


def _can_be_cut(program: Program, node: fx.Node) -> bool:
    """A tensor with the batch as its first dimension."""
    kind, first = type_of(node), type_of(program.placeholders[0])
    return (
        node.op == "call_function"
        and isinstance(kind, TensorType)
        and bool(kind.shape)
        and bool(first.shape)
        and kind.shape[0] == first.shape[0]
    )


def _minimum(program: Program, nodes: Mapping[fx.Node, None], near: set[fx.Node]) -> tuple[fx.Node, ...] | None:
    graph = nx.DiGraph()
    for node in nodes:  # a node is an edge from where it is read to where it reads
        graph.add_edge(("in", node), ("out", node), capacity=1 if node in near else _FAR)
        sources: Sequence[fx.Node] = [source for source in node.all_input_nodes if source in nodes]
        for source in sources:
            graph.add_edge(("out", source), ("in", node))
        if node.op == "placeholder":
            graph.add_edge("inputs", ("in", node))
    for node in program.outputs:
        if node in nodes:
            graph.add_edge(("out", node), "outputs")
    if "inputs" not in graph or "outputs" not in graph:
        return None
    value, (before, _) = nx.minimum_cut(graph, "inputs", "outputs", flow_func=shortest_augmenting_path)
    if value > _LARGEST:
        return None
    return tuple(node for node in nodes if ("in", node) in before and ("out", node) not in before)
