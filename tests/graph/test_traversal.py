"""What is reached from nodes, where walks stop, and the order of visits; deep graphs need no recursion."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import fx

from anytimeify.capture import capture
from anytimeify.graph.traversal import ancestors, descendants, reachable
from tests.backbones import Residual, images


def diamond() -> dict[str, fx.Node]:
    """`x -> a -> (b, c) -> d -> output`, and `e` beside them, which reads `x` and which nothing reads."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = {"x": x}
    for name, sources in {"a": "x", "b": "a", "c": "a", "d": "bc", "e": "x"}.items():
        args = tuple(nodes[one] for one in sources)
        nodes[name] = graph.create_node("call_function", torch.add, args, name=name)
    nodes["output"] = graph.output((nodes["d"],)).graph.output_node()
    return nodes


def named(nodes: set[fx.Node]) -> set[str]:
    return {node.name for node in nodes}


def test_ancestors_hold_the_nodes_themselves() -> None:
    nodes = diamond()
    assert named(ancestors([nodes["d"]])) == {"x", "a", "b", "c", "d"}
    assert named(ancestors([nodes["b"], nodes["e"]])) == {"x", "a", "b", "e"}
    assert ancestors([]) == set()


def test_descendants_are_calls() -> None:
    nodes = diamond()
    assert named(descendants([nodes["a"]])) == {"a", "b", "c", "d"}
    assert named(descendants([nodes["x"]])) == {"x", "a", "b", "c", "d", "e"}
    assert descendants([nodes["output"]]) == set()


def test_a_walk_stops_before_a_node_and_goes_around_it() -> None:
    nodes = diamond()
    assert named(ancestors([nodes["d"]], stop=lambda node: node.name == "b")) == {"x", "a", "c", "d"}
    assert named(ancestors([nodes["d"]], stop=lambda node: node.name == "a")) == {"b", "c", "d"}
    assert ancestors([nodes["d"]], stop=lambda node: node.name == "d") == set()


def test_visits_are_depth_first_and_the_last_neighbour_comes_first() -> None:
    nodes = diamond()
    found = reachable([nodes["d"]], lambda node: node.all_input_nodes)
    assert [node.name for node in found] == ["d", "c", "a", "x", "b"]


def test_deep_graphs() -> None:
    graph = fx.Graph()
    node = first = graph.placeholder("x")
    for _ in range(5_000):
        node = graph.call_function(torch.relu, (node,))
    assert len(ancestors([node])) == len(descendants([first])) == 5_001


@pytest.mark.parametrize("position", [0, 5, -2])
def test_a_network_is_walked_as_networkx_walks_it(position: int) -> None:
    program = capture(Residual(), (images(),)).program
    graph = nx.DiGraph((source, node) for node in program.graph.nodes for source in node.all_input_nodes)
    node = [one for one in program.graph.nodes if one.op != "output"][position]
    assert ancestors([node]) == nx.ancestors(graph, node) | {node}
    assert descendants([node]) == (nx.descendants(graph, node) | {node}) - {program.graph.output_node()}
