"""`Parts`: one part of a concatenated prediction, after a scheme.

    y = mean(stack([cat([a, b], 1), cat([c, d], 1)]))      ->      mean(stack([a, c]))

The selection of a part moves up through averages over leaves and all other operations that do not mix elements, to the
concatenation, which vanishes; where that is not possible, the prediction is sliced.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from anytimeify.graph.builder import Builder
from anytimeify.ir import Size, result_of
from anytimeify.ir.node_meta import origin_of, packed_of, type_of
from anytimeify.ir.schema import bound
from anytimeify.rules import has_kind, traits

__all__ = ["Parts"]

aten = torch.ops.aten


@dataclass
class Parts:
    """Selections of single parts, appended to a graph: what the parts are called, and their sizes."""

    builder: Builder
    names: Sequence[str]
    sizes: Sequence[int]
    known: dict[tuple[fx.Node, int, int], fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = list(itertools.accumulate(self.sizes))
        self.bounds = list(zip([0, *ends], ends, strict=False))

    def of(self, node: fx.Node, dim: int, part: int) -> fx.Node:
        """The part of a value, or of each of several, whose dimension `dim` holds all of them."""
        key = (node, dim, part)
        if key not in self.known:
            found = self.operand(node, dim, part) or self.moved(node, dim, part)
            self.known[key] = found or self.cut(node, dim, part)
        return self.known[key]

    def operand(self, node: fx.Node, dim: int, part: int) -> fx.Node | None:
        """What a concatenation of the parts read."""
        tensors: list[fx.Node] = list(bound(node)["tensors"]) if has_kind(node, "join") else []
        if not tensors or len(type_of(tensors[0]).shape) != len(type_of(node).shape):
            return None
        sizes = [type_of(one).shape[dim] for one in tensors]
        together = bound(node)["dim"] % len(type_of(node).shape) == dim
        # Of a level at another input size, parts have other sizes.
        whole = sizes == list(map(Size, self.sizes)) or packed_of(node) == tuple(self.names)
        return tensors[part] if together and whole else None

    def moved(self, node: fx.Node, dim: int, part: int) -> fx.Node | None:
        """The operation on parts of what it reads, where it does not mix them; None where that is not known."""
        source = result_of(node)
        if source is not None:
            if self.sources(source, dim) is None:
                return None
            return self.again(node, {source: self.of(source, dim, part)}, part)
        found = self.sources(node, dim)
        if found is None:
            return None
        return self.again(node, {source: self.of(source, place, part) for source, place in found.items()}, part)

    def sources(self, node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
        """Where the parts of a result lie in what an operation reads, if it does not mix them."""
        found = traits(node).sources
        return found(node, dim) if found is not None else None

    def again(self, node: fx.Node, own: Mapping[fx.Node, fx.Node], part: int) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: own.get(source, source))
        return self.emit(node, node.target, args, kwargs, part)

    def cut(self, node: fx.Node, dim: int, part: int) -> fx.Node:
        return self.emit(node, aten.slice.Tensor, (node, dim, *self.bounds[part]), {}, part)

    def emit(self, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], part: int) -> fx.Node:
        return self.builder.call(target, args, kwargs, f"{like.name}_{self.names[part]}", {"origin": origin_of(like)})
