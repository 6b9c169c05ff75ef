"""Which operations treat the samples of a batch one like the other, so that members may be more samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from anytimeify.ir import Size, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.passes.fusion.batching_layout import BatchingLayouts, is_batch
from anytimeify.rules import has_kind, traits

__all__ = ["sample_by_sample"]


def sample_by_sample(s: BatchingLayouts, node: fx.Node) -> bool:
    """Whether a sample of the results depends on that sample of the operands alone, and not on its place.

    The batch of every result has to be that of an operand: an operation that picks, moves or joins samples makes an
    axis of its own, which enumerates samples too where it meets the batch later on."""
    given = bound(node)
    if any(is_batch(leaf) for leaf in s.axes.mixed.get(node, ())):
        return False
    if given.get("mode") == "batch":  # stochastic depth that drops whole batches: each member draws for itself
        return False
    results = s.axes.dims[node] if isinstance(type_of(node), tuple) else (s.axes.dims[node],)
    tensors = [source for source in node.all_input_nodes if isinstance(type_of(source), TensorType)]
    if has_kind(node, "reshape"):
        return all(_elements_before(s, one) == _elements_before(s, node) is not None for one in tensors)
    known = {s.batch_factor(s.axes.dims[source]) for source in tensors} - {None}
    if not all(s.batch_factor(dims) in known for dims in results):
        return False
    return s.find_batch(tensors[0]) not in _by_place(s, node, given, len(type_of(tensors[0]).shape))


def _elements_before(s: BatchingLayouts, node: fx.Node) -> Size | None:
    """How many elements the dimensions before the batch have: where that stays the same, so do members, whatever the
    other dimensions are read as."""
    place = s.find_batch(node)
    return None if place is None else math.prod(type_of(node).shape[:place], start=Size(1))


def _by_place(s: BatchingLayouts, node: fx.Node, given: Mapping[str, Any], rank: int) -> Sequence[int]:
    """The dimensions of the first operand whose elements are distinguished by their place, though the result has them
    too: those that something is written to or gathered from at an index."""
    indices = given["indices"] if has_kind(node, "gather") else ()
    if any(one is not None and s.has_batch(one) for one in indices):
        return range(rank)
    placed = traits(node).placed
    if placed is not None:
        return placed(node)
    along = given.get("dim")
    return [along % rank] if isinstance(along, int) and rank else []
