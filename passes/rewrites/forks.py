r"""Forks that several tensors pass: places in the order of a graph, whatever skip connections and masks lead over them.

x -> down -> down -> up -> up       a fork behind the first `down` is passed by its result, which the next `down`
       \____________/               and the last `up` read; everything later is the branch's own
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from anytimeify.analysis.blocks import Blocks, data_nodes
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.ir import Captured, Program
from anytimeify.passes.rewrites.cuts import Cut, name_of_cut
from anytimeify.passes.rewrites.replicate import depths

__all__ = ["Fork", "even_forks", "fork_at"]


@dataclass(frozen=True)
class Fork:
    """The tensors that pass a fork, and the calls behind it."""

    passing: Cut
    behind: frozenset[fx.Node]

    def name(self, program: Program, blocks: Blocks) -> str:
        """That of the last tensor that passes, and how many others do."""
        if len(self.passing) == 1:
            return name_of_cut(program, blocks, self.passing)
        return f"{self.passing[-1].name} and {len(self.passing) - 1} more"


def fork_at(program: Program, cut: Cut) -> Fork:
    """The fork at a cut."""
    places = depths(program, [cut])
    return Fork(cut, frozenset(node for node, depth in places.items() if depth and node.op == "call_function"))


def even_forks(captured: Captured, count: int, *, within: float = 0.4) -> list[Fork]:
    """Forks between which the network costs about the same, each where the fewest tensors pass near by, `within` a
    share of a part; fewer than `count` where there are no such places."""
    macs = macs_by_node(captured.program, captured.batch, *sizes(captured))
    data = [node for node in data_nodes(captured.program) if node.op == "call_function"]
    spent = list(itertools.accumulate(macs.get(node, 0) for node in data))
    passing = _passing(data)
    half = within / (count + 1)
    places = []
    for number in range(1, count + 1):
        shares = [abs(here / max(1, spent[-1]) - number / (count + 1)) for here in spent[:-1]]
        near = [
            (len(passing[place]), share, place)
            for place, share in enumerate(shares)
            if share <= half and 0 < spent[place] < spent[-1]
        ]
        places += [place for among, _, place in sorted(near) if among][:1]
    return [Fork(passing[place], _behind(captured.program, data, place)) for place in dict.fromkeys(places)]


def _passing(data: Sequence[fx.Node]) -> list[Cut]:
    """For every node, what it and those before it give to those after it."""
    order = {node: place for place, node in enumerate(data)}
    passing: list[list[fx.Node]] = [[] for _ in data]
    for place, node in enumerate(data):
        for between in range(place, max((order.get(user, 0) for user in node.users), default=place)):
            passing[between].append(node)
    return [tuple(nodes) for nodes in passing]


def _behind(program: Program, data: Sequence[fx.Node], place: int) -> frozenset[fx.Node]:
    """The calls after a place, and what is computed of parameters and sizes for them alone."""
    behind, before = set(data[place + 1 :]), set(data[: place + 1])
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and node not in before and node.users and behind.issuperset(node.users):
            behind.add(node)
    return frozenset(behind)
