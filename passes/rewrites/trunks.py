"""What a network costs up to any of its tensors, and the pooled heads that fit there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.blocks import data_nodes
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.passes.rewrites.shaped_head import ShapedHead

__all__ = ["Trunks"]

_TRIED = 8  # heads at one place


@dataclass(frozen=True)
class Trunks:
    """The trunk of a tensor is everything that it depends on."""

    captured: Captured
    axes: Axes

    def heads(self, share: float, limit: float, among: Set[fx.Node] | None) -> Iterator[ShapedHead]:
        """Heads on tensors whose trunk costs about a share of the network, the nearest first, and less than `limit`;
        of equal trunks at the last tensor. Where `among` is given, on those tensors alone."""
        last: dict[int, ShapedHead] = {}
        for node, spent in self._spent.items():
            if 0 < spent < limit and (among is None or node in among) and node in self._heads:
                last[spent] = self._heads[node]
        nearest = sorted(last, key=lambda spent: abs(spent - share * self.total))
        return (last[spent] for spent in nearest[:_TRIED])

    @property
    def total(self) -> int:
        """Multiply-accumulates of the network."""
        return max(self._spent.values(), default=0)

    @cached_property
    def _heads(self) -> Mapping[fx.Node, ShapedHead]:
        found = {}
        for node in self._spent:
            if node.op == "call_function":
                try:
                    found[node] = ShapedHead.of(self.captured.program, self.axes, node)
                except SchemeError:
                    continue  # no features
        return found

    @cached_property
    def _spent(self) -> Mapping[fx.Node, int]:
        """Of every data node, what its trunk costs. Ancestors are the bits of a number."""
        macs = macs_by_node(self.captured.program, self.captured.batch, *sizes(self.captured))
        costs = list(macs.values())
        places = {node: place for place, node in enumerate(macs)}
        trunks: dict[fx.Node, int] = {}
        for node in self.captured.program.graph.nodes:
            trunk = 1 << places[node] if node in places else 0
            for source in node.all_input_nodes:
                trunk |= trunks[source]
            trunks[node] = trunk
        known: dict[int, int] = {}
        return {
            node: known.setdefault(trunks[node], _sum(costs, trunks[node]))
            for node in data_nodes(self.captured.program)
        }


def _sum(costs: list[int], trunk: int) -> int:
    return sum(cost for place, cost in enumerate(costs) if trunk >> place & 1)
