"""`resume`: the outputs of a graph one after the other. Each step computes only what earlier steps did not.

    h = f(x); low = a(h); full = b(h)       ->      step 1 reads x and gives h, low = a(h)
                                                    step 2 reads h and gives full = b(h)

Parameters are read in every step that needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.graph.traversal import reachable

__all__ = ["Step", "steps"]


@dataclass(frozen=True)
class Step:
    """What one output still needs: a graph from the values called `reads` to those called `gives`.

    The output's own value is the last that it gives."""

    graph: fx.Graph
    reads: tuple[str, ...]
    gives: tuple[str, ...]


def steps(graph: fx.Graph, outputs: Sequence[fx.Node], again: Collection[fx.Node] = ()) -> tuple[Step, ...]:
    """The chain of graphs that computes `outputs` in order.

    1. Every node is computed in the first step that needs it, and nowhere else; parameters are read wherever they are.
    2. A value that a later step needs too is given by the step that computes it, under its node's name; inputs are
       values that are there from the beginning.
    3. Nodes in `again` are not handed over but computed in every step that needs them: sizes, and what is cheap.
    """
    repeated = frozenset(again)
    owner: dict[fx.Node, int] = {}
    for index, output in enumerate(outputs):
        new = reachable(
            [output],
            lambda node: _sources(node, repeated),
            stop=lambda node: node in owner or node.op in ("placeholder", "get_attr"),
        )
        owner.update(dict.fromkeys(new, index))
    given: dict[int, dict[fx.Node, None]] = {index: {} for index in range(len(outputs))}
    for node in graph.nodes:
        for source in _sources(node, repeated):
            if node in owner and source in owner and owner[source] < owner[node]:
                given[owner[source]][source] = None
    for index, output in enumerate(outputs):
        if owner.get(output, index) < index:
            given[owner[output]][output] = None
    return tuple(_step(graph, output, index, owner, given[index], repeated) for index, output in enumerate(outputs))


def _sources(node: fx.Node, repeated: Collection[fx.Node]) -> Iterator[fx.Node]:
    """What a node reads, and what the repeated ones among it are computed from."""
    sources = reachable(node.all_input_nodes, lambda one: one.all_input_nodes if one in repeated else ())
    return (source for source in sources if source not in repeated)


def _step(
    graph: fx.Graph,
    output: fx.Node,
    index: int,
    owner: dict[fx.Node, int],
    given: dict[fx.Node, None],
    repeated: Collection[fx.Node],
) -> Step:
    mine = {node for node in graph.nodes if owner.get(node) == index}
    for node in reversed(graph.nodes):
        if node in mine:
            mine.update(source for source in node.all_input_nodes if source in repeated)
    inner = [node for node in graph.nodes if node in mine]
    needed = dict.fromkeys(source for node in inner for source in node.all_input_nodes if source not in mine)
    if owner.get(output) != index:  # computed before, or an input
        needed.setdefault(output)
    reads = [node for node in needed if node.op != "get_attr"]
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in reads:
        copies[node] = result.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in (*(one for one in needed if one.op == "get_attr"), *inner):
        copies[node] = copy_node(result, node, copies.__getitem__)
    gives = [*(node for node in given if node is not output), output]
    result.output(tuple(copies[node] for node in gives))
    return Step(result, tuple(node.name for node in reads), tuple(node.name for node in gives))
