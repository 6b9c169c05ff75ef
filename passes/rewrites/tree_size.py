"""How large the graph of a tree of networks is, and its parameters, before there is one.

The unrolled graph has every call and every read of a parameter once a member. Graphs whose members are fused have each
call once, and what puts members side by side besides; how much that is depends on the operations, and is counted on a
graph of two members and on one of three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from anytimeify.ir import Program
from anytimeify.ir.sizes import ProgramSize, bytes_of
from anytimeify.passes.rewrites.replicate import Tree

__all__ = ["Line", "TreeSize"]


class Line(NamedTuple):
    """A number of nodes that grows with that of members, where some operations run one member after the other."""

    at_none: float
    slope: float


@dataclass(frozen=True)
class TreeSize:
    """What is counted by: the calls of a backbone and the tensors that it reads, after so many splits each."""

    program: Program
    tree: Tree
    calls: Mapping[int, int]
    reads: Mapping[int, int]
    tensors: Mapping[str, int]

    @staticmethod
    def of(program: Program, tree: Tree, places: Mapping[fx.Node, int], tensors: Mapping[str, int]) -> TreeSize:
        """`places`: the number of cuts before every node; `tensors`: after how many splits members have one each."""
        nodes = program.graph.nodes
        calls = Counter(places[node] for node in nodes if node.op == "call_function")
        reads = Counter(tensors[str(node.target)] for node in nodes if node.op == "get_attr" and node.users)
        return TreeSize(program, tree, calls, reads, tensors)

    @property
    def shared(self) -> int:
        """Nodes that there are once: inputs, tensors, and what comes before the first cut."""
        return len(self.program.graph.nodes) - sum(self.calls.values()) + self.calls.get(0, 0)

    def unrolled(self) -> int:
        """Nodes of the graph that computes leaf after leaf, without those that are shared."""
        return sum(self.tree.members(depth) * self._of_member(depth) for depth in self._depths)

    def fused(self, leaves: int, each: Line) -> float:
        """Nodes of the graph of the first leaves, without those that are shared; `each`: of a call that is fused, by
        the number of members."""
        total = 0.0
        for depth in self._depths:
            active = self.tree.active(depth, leaves)
            if active == 1:
                total += self._of_member(depth)
                continue
            total += (each.at_none + each.slope * active) * self.calls.get(depth, 0)
            if active < self.tree.members(depth):
                total += self.reads.get(depth, 0)
        return total

    def size(self, counts: Sequence[int], each: Line | None) -> ProgramSize:
        """Of levels that are the first `counts` leaves; `each` as in `fused`, None where nothing is."""
        nodes = float(self.shared + self.unrolled())
        if each is not None:
            nodes += sum(self.fused(count, each) for count in counts[1:])
        held = {
            id(tensor): bytes_of([tensor]) * self.tree.members(self.tensors.get(name, 0))
            for name, tensor in self.program.tensors.items()
        }
        return ProgramSize(round(nodes), sum(held.values()))

    @property
    def _depths(self) -> range:
        return range(1, len(self.tree.fanouts) + 1)

    def _of_member(self, depth: int) -> int:
        return self.calls.get(depth, 0) + self.reads.get(depth, 0)
