"""Chains of graphs: every node in one of them, and what later ones need carried over."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from anytimeify.passes.rewrites.resume import Step, steps


def graph_of(text: str, outputs: str) -> tuple[fx.Graph, list[fx.Node]]:
    """A graph from lines such as `c = a b`, a sum of two; names that no line gives are inputs, `w` is a parameter."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    rows = [line.split() for line in text.strip().splitlines()]
    made = {row[0] for row in rows}
    for name in dict.fromkeys(word for row in rows for word in row[2:] if word not in made):
        nodes[name] = graph.get_attr("w") if name == "w" else graph.placeholder(name)
    for name, _, *read in rows:
        nodes[name] = graph.create_node("call_function", operator.add, tuple(nodes[one] for one in read), name=name)
    results = [nodes[name] for name in outputs.split()]
    graph.output(tuple(results))
    return graph, results


def calls(step: Step) -> list[str]:
    return [node.name for node in step.graph.nodes if node.op == "call_function"]


def shown(chain: tuple[Step, ...]) -> list[tuple[str, str, str]]:
    return [(" ".join(step.reads), " ".join(calls(step)), " ".join(step.gives)) for step in chain]


def run(chain: tuple[Step, ...], inputs: dict[str, Any], weight: torch.Tensor) -> list[Any]:
    root = nn.Module()
    root.register_buffer("w", weight)
    known, results = dict(inputs), []
    for step in chain:
        given = fx.GraphModule(root, step.graph)(*(known[name] for name in step.reads))
        known.update(zip(step.gives, given, strict=True))
        results.append(given[-1])
    return results


FORKED = """
a = x w
b = a w
c = a b
d = c a
"""


def test_every_node_is_in_the_first_step_that_needs_it() -> None:
    chain = steps(*graph_of(FORKED, "b c d"))
    assert shown(chain) == [("x", "a b", "a b"), ("a b", "c", "c"), ("c a", "d", "d")]


def test_steps_give_what_the_whole_graph_gives() -> None:
    graph, outputs = graph_of(FORKED, "b c d")
    root, weight, x = nn.Module(), torch.tensor(2.0), torch.tensor(3.0)
    root.register_buffer("w", weight)
    assert run(steps(graph, outputs), {"x": x}, weight) == list(fx.GraphModule(root, graph)(x))


def test_a_value_is_carried_over_steps_that_do_not_read_it() -> None:
    chain = steps(*graph_of("a = x x\nb = y y\nc = y b\nd = c a", "a b c d"))
    assert shown(chain) == [("x", "a", "a"), ("y", "b", "b"), ("y b", "c", "c"), ("c a", "d", "d")]


def test_an_output_that_was_computed_before_is_passed_on() -> None:
    chain = steps(*graph_of("a = x x\nb = a x", "b a b"))
    assert shown(chain) == [("x", "a b", "a b"), ("a", "", "a"), ("b", "", "b")]
    assert run(chain, {"x": 1}, torch.zeros(())) == [3, 2, 3]


def test_an_input_may_be_an_output() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((x,))
    assert shown(steps(graph, [x])) == [("x", "", "x")]


def test_what_no_output_needs_is_in_no_step() -> None:
    assert shown(steps(*graph_of("a = x x\nb = a x", "a"))) == [("x", "a", "a")]


def test_what_is_computed_again_is_not_handed_on() -> None:
    graph, outputs = graph_of("a = x w\nsize = a a\ntwice = size size\nb = a twice\nc = b twice", "b c")
    nodes = {node.name: node for node in graph.nodes}
    chain = steps(graph, outputs, again=(nodes["size"], nodes["twice"]))
    assert shown(chain) == [("x", "a size twice b", "a b"), ("a b", "size twice c", "c")]
    root, weight = nn.Module(), torch.tensor(2.0)
    root.register_buffer("w", weight)
    assert run(chain, {"x": torch.tensor(3.0)}, weight) == list(fx.GraphModule(root, graph)(torch.tensor(3.0)))
