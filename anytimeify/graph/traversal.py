"""What can be reached from some nodes of a graph.

All walks are iterative, visit every node once, and take time linear in the nodes and edges that they meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TypeAlias

from torch import fx

__all__ = ["ancestors", "descendants", "reachable"]

Neighbours: TypeAlias = Callable[[fx.Node], Iterable[fx.Node]]
Predicate: TypeAlias = Callable[[fx.Node], bool]

_inputs: Neighbours = attrgetter("all_input_nodes")
_users: Neighbours = attrgetter("users")


def reachable(nodes: Iterable[fx.Node], neighbours: Neighbours, stop: Predicate | None = None) -> dict[fx.Node, None]:
    """The nodes themselves and what `neighbours` leads to from them, depth first, in the order in which they are
    visited. A node that `stop` holds for is neither visited nor passed through, be it one of `nodes`."""
    found: dict[fx.Node, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and not (stop is not None and stop(node)):
            found[node] = None
            waiting.extend(neighbours(node))
    return found


def ancestors(nodes: Iterable[fx.Node], stop: Predicate | None = None) -> set[fx.Node]:
    """The nodes themselves and everything that they depend on."""
    return set(reachable(nodes, _inputs, stop))


def descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes themselves and every call that depends on one of them; the output node is none."""
    return set(reachable(nodes, _users, stop=lambda node: node.op == "output"))
