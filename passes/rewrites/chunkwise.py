"""What one pass for all levels computes chunk by chunk, each chunk once: norms that a backbone writes out, and gates.

m0 = mean(slice(x, 1, 0, 2), [1])                      x0, x1 = split_with_sizes(x, [2, 2], 1)
m1 = mean(x, [1])                               ->     m0 = mean(x0, [1])
y0 = sub(slice(x, 1, 0, 2), m0)                        m1 = lerp(m0, mean(x1, [1]), 0.5)
y = cat([y0, slice(sub(x, m1), 1, 2, 4)], 1)           y = cat([sub(x0, m0), sub(x1, m1)], 1)
"""

from __future__ import annotations

import operator
from typing import Protocol

import numpy as np
import torch
from torch import fx

from anytimeify.graph.builder import Builder
from anytimeify.ir import TensorType, meta_of
from anytimeify.ir.node_meta import counts_of, type_of
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence, Kind
from anytimeify.rules import traits

__all__ = ["Chunkwise"]

aten = torch.ops.aten


class Whole(Protocol):
    """Whole values, of the levels up to `top`."""

    dependence: BlockTriangularDependence
    builder: Builder
    top: int
    prefix: str

    def value(self, node: fx.Node, level: int) -> fx.Node:
        """The value of a node at a level."""

    def call_chunk(self, node: fx.Node, level: int) -> fx.Node:
        """A call on the chunks that a level adds to what it reads."""


class Chunkwise:
    """The chunks of values, beside the whole values of `levels`."""

    def __init__(self, levels: Whole) -> None:
        self.levels, self.dependence = levels, levels.dependence
        self.known: dict[fx.Node, dict[int, fx.Node]] = {}

    def of(self, node: fx.Node) -> dict[int, fx.Node]:
        """What every level adds to a nested value that lies in chunks, of those that add something."""
        if node not in self.known:
            self.known[node] = self._split(node)
        return self.known[node]

    def _split(self, node: fx.Node) -> dict[int, fx.Node]:
        levels, (dim,), sizes = self.levels, self.dependence.narrowed_dims(node), self._sizes(node)
        name, value = f"{levels.prefix}{node.name}_chunks", levels.value(node, levels.top)
        arguments = (value, list(sizes.values()), dim)
        parts = levels.builder.call(aten.split_with_sizes.default, arguments, {}, name, meta_of(node))
        return {
            level: levels.builder.call(operator.getitem, (parts, place), {}, f"{name}_{level}", meta_of(node))
            for place, level in enumerate(sizes)
        }

    def _sizes(self, node: fx.Node) -> dict[int, int]:
        """How many entries every level adds, of those that add some."""
        (dim,) = self.dependence.narrowed_dims(node)
        expr = self.dependence.axes.dims[node][dim]
        found = {level: len(self.dependence.new(expr, level)) for level in range(self.levels.top + 1)}
        return {level: size for level, size in found.items() if size}

    def assembled(self, node: fx.Node) -> fx.Node | None:
        """The whole value of an operation that treats every channel for itself, but reads a value that every level has
        for itself; None for others."""
        if not self._treats_channels_alone(node):
            return None
        levels, (dim,) = self.levels, self.dependence.narrowed_dims(node)
        self.known[node] = {level: levels.call_chunk(node, level) for level in self._sizes(node)}
        pieces = list(self.known[node].values())
        return levels.builder.call(aten.cat.default, (pieces, dim), {}, f"{levels.prefix}{node.name}", meta_of(node))

    def reduced(self, node: fx.Node, level: int) -> fx.Node | None:
        """The reduction of the channels up to a level; None where that is not made of what the chunks are reduced
        to."""
        sources = node.all_input_nodes
        joined = traits(node).joined
        if joined is None or len(sources) != 1 or not self.dependence.kinds[sources[0]].nested or counts_of(node):
            return None
        if sources[0].op != "call_function" or not self._lies_in_chunks(sources[0]):
            return None
        if self.dependence.narrowed_dims(node):
            return None
        sizes = self._sizes(sources[0])
        if level not in sizes:
            return self.levels.value(node, level - 1)
        own = self.levels.call_chunk(node, level)
        if level == min(sizes):
            return own
        share = sizes[level] / sum(size for one, size in sizes.items() if one <= level)
        target, arguments = joined(self.levels.value(node, level - 1), own, share)
        return self.levels.builder.call(
            target, arguments, {}, f"{self.levels.prefix}{node.name}_to{level}", meta_of(node)
        )

    def _treats_channels_alone(self, node: fx.Node) -> bool:
        """Of layers, whose multiply-accumulates decide whether a network is refused, nothing is computed this way."""
        mixed = self.dependence.axes.mixed.get(node, frozenset())
        if (
            counts_of(node)
            or traits(node).macs is not None
            or any(factor in self.dependence.chunk_of for factor in mixed)
        ):
            return False
        return self._lies_in_chunks(node) and all(map(self._can_be_read, node.all_input_nodes))

    def _can_be_read(self, source: fx.Node) -> bool:
        dependence = self.dependence
        if source.op != "call_function":
            return len(dependence.narrowed_dims(source)) < 2 if source.op == "get_attr" else True
        kind = dependence.kinds[source]
        if kind is Kind.SEPARATE:
            return not any(dependence.is_narrowed(expr) for dims in dependence.results(source) for expr in dims)
        return not kind.nested or self._lies_in_chunks(source)

    def _lies_in_chunks(self, node: fx.Node) -> bool:
        """Whether what the levels add to a value are neighbours, in order, and each is all axes at the size of their
        chunks."""
        dependence = self.dependence
        if not isinstance(type_of(node), TensorType) or not dependence.is_flat(node):
            return False
        (dim,) = dependence.narrowed_dims(node)
        expr = dependence.axes.dims[node][dim]
        chunks = dependence.chunks(expr)[dependence.kept(expr, self.levels.top)]
        return not (np.diff(chunks) < 0).any() and all(dependence.is_cut(expr, level) for level in self._sizes(node))
