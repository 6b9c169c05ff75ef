"""A graph of ONNX as plain data: what `read` gives, what the passes of this package rewrite, what `network` runs.

Values have names, and each is written once. A graph inside a node, a branch of an `If`, reads values of the graphs
around it by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Array", "Graph", "Input", "Node", "nodes_of", "readers"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Node:
    """One operation. An input that is left out is `""`. Attributes are numbers, texts, arrays, graphs, or lists."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    def __str__(self) -> str:
        """As error messages name it."""
        kind = f"{self.domain}.{self.operator}" if self.domain else self.operator
        return f"{kind} '{self.name or next(iter(self.outputs), '')}'"

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return tuple(value for value in self.attributes.values() if isinstance(value, Graph))


@dataclass(frozen=True)
class Input:
    """What a graph is given: its dtype, and its sizes as numbers, names, or None; None where even the rank is open."""

    name: str
    dtype: np.dtype[Any]
    sizes: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, tensors by name, and what goes in and out."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Array]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def nodes_of(graph: Graph) -> Iterator[Node]:
    """All nodes, those of inner graphs included."""
    for node in graph.nodes:
        yield node
        for inner in node.graphs:
            yield from nodes_of(inner)


def readers(graph: Graph) -> dict[str, int]:
    """How often each value is read: by nodes, by inner graphs, as an output."""
    counts: dict[str, int] = {}
    for name in (*graph.outputs, *(name for node in graph.nodes for name in node.inputs)):
        counts[name] = counts.get(name, 0) + 1
    for node in graph.nodes:
        for inner in node.graphs:
            for name, count in readers(inner).items():
                counts[name] = counts.get(name, 0) + count
    return counts
