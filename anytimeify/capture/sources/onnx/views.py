"""Views that an exporter wrote as tables of places are reshapes again.

    Gather(Reshape(x, [-1]), [[0, 1], [2, 3], ...])         ->      Reshape(x, [-1, 2])

The exporter of torch 2.13 does so for `as_strided`, which a pooling in channels-last layout ends with. The places are
computed from the batch, so the graph runs for two batches: a table that holds every place once and in order in both,
and has one size that differs, is a reshape for any batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array, Graph, Node
from anytimeify.capture.sources.onnx.network import Network
from anytimeify.capture.sources.onnx.values import tensor_of

__all__ = ["tables_of_places", "without_tables_of_places"]


def tables_of_places(graph: Graph) -> list[tuple[Node, str]]:
    """Nodes that may be such views, and what they are views of."""
    made = {name: node for node in graph.nodes for name in node.outputs}
    found = []
    for node in graph.nodes:
        flat = made.get(node.inputs[0]) if node.operator == "Gather" and not node.attributes.get("axis", 0) else None
        if flat is not None and flat.operator == "Reshape":
            target = graph.tensors.get(flat.inputs[1])
            if target is not None and target.tolist() == [-1]:
                found.append((node, flat.inputs[0]))
    return found


def without_tables_of_places(graph: Graph, network: Network, runs: Sequence[Sequence[Tensor]]) -> Graph:
    """The graph with reshapes; `runs`: inputs of two batches."""
    with torch.no_grad():
        values = [network.values(inputs) for inputs in runs]
    new: dict[int, Node] = {}
    tensors: dict[str, Array] = {}
    for node, source in tables_of_places(graph):
        shapes = [_in_order(one, node, source) for one in values]
        target = _target(shapes)
        if target is not None:
            name = f"{node.outputs[0]} as a view"
            tensors[name] = np.array(target)
            new[id(node)] = replace(node, operator="Reshape", inputs=(source, name), attributes={})
    nodes = tuple(new.get(id(node), node) for node in graph.nodes)
    return replace(graph, nodes=nodes, tensors={**graph.tensors, **tensors})


def _in_order(values: Mapping[str, Any], node: Node, source: str) -> list[int] | None:
    """The shape of a table that holds all places in their order."""
    places = values[node.inputs[1]]
    table = tensor_of(places) if isinstance(places, np.ndarray) else places
    count = values[source].numel()
    return list(table.shape) if torch.equal(table.reshape(-1), torch.arange(count)) else None


def _target(shapes: Sequence[list[int] | None]) -> list[int] | None:
    one, two = shapes
    if one is None or two is None or len(one) != len(two):
        return None
    target = [size if size == other else -1 for size, other in zip(one, two, strict=True)]
    return target if target.count(-1) <= 1 else None
