"""Norms of all levels of a triangular network as one operation.

y0 = layer_norm(slice(x, 1, 0, 2), [2])         ->      y = prefix_norm(x, [2, 4])
y = cat([y0, slice(layer_norm(x, [4]), 1, 2, 4)], 1)
"""

from __future__ import annotations

import numpy as np
from torch import fx

from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence
from anytimeify.rules import traits
from anytimeify.rules.op import Call

__all__ = ["prefix_norm"]


def prefix_norm(dependence: BlockTriangularDependence, node: fx.Node, level: int) -> Call | None:
    """The call for a norm up to a level, where the norm's rule knows one.

    None for every other operation, where a bias comes without a weight, what reads a separate value for each level, and
    levels whose channels are not neighbours or have sizes without a large common part.
    """
    prefix = traits(node).prefix
    if prefix is None or any(source in dependence.separate for source in node.all_input_nodes):
        return None
    values = bound(node)
    if values.get("bias") is not None and values["weight"] is None:
        return None
    return prefix(node, _Ends(dependence, node, level))


class _Ends:
    """Where the levels up to `level` end."""

    def __init__(self, dependence: BlockTriangularDependence, node: fx.Node, level: int) -> None:
        self.dependence, self.node, self.level = dependence, node, level
        self.narrowed, self.rank = dependence.narrowed_dims(node), len(dependence.axes.dims[node])

    def ends(self, dim: int) -> list[int] | None:
        expr = self.dependence.axes.dims[self.node][dim]
        chunks = self.dependence.chunks(expr)[self.dependence.kept(expr, self.level)]
        if (np.diff(chunks) < 0).any() or chunks[0]:
            return None
        return [int(end) for end in np.searchsorted(chunks, range(self.level + 1), side="right")]
