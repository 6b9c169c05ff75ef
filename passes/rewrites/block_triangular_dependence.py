"""The block-triangular dependence of a program: for each node, how its value differs between levels.

The elements that a level adds to an axis are its chunk of that axis. A value is nested if the elements of every level
depend on elements of that level and of lower ones alone; then the value at a level is the leading part of the whole
value. There are four ways to compute a result, depending on what its operation does with narrowed axes:

1. *whole*: it treats each channel separately, so it is called once, on whole values;
2. *masked*: it is a layer, and a mask removes the elements of its weight that read a later chunk than they write;
3. *assembled*: it mixes channels in another way (layer norm, weight standardisation), or reads a value that is separate
   for each level (a gate made of all channels): it is called for every level, and what each level adds is concatenated;
4. *separate*: its result has no narrowed axis (a head, a mean over channels): every level has a separate value.

    y = linear(x, w)            ->      y = linear(x, mul(w, mask))                          masked
    y = layer_norm(x, [4])      ->      y0 = layer_norm(slice(x, 1, 0, 2), [2])              assembled
                                        y = cat([y0, slice(layer_norm(x, [4]), 1, 2, 4)], 1)

Operations that mix channels are nested too, because chunk k reads chunks 1 to k: a layer norm takes its statistics over
the chunks so far; in one pass for all levels it is one operation (`prefix_norms`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.ir import Program, Size, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.passes.rewrites.narrow import reached_by, types_at
from anytimeify.passes.rewrites.operands import Blocks, blocks_of
from anytimeify.rules import Layers, contractions, notation_of, traits
from anytimeify.rules.factors import Expr, Factor, Sum, leaves, resolve

__all__ = ["BlockTriangularDependence", "Kind", "Layer", "Places"]

Places: TypeAlias = npt.NDArray[np.int64]


class Kind(Enum):
    """How the value of a node differs between levels."""

    SAME = "same"  # not at all
    WHOLE = "whole"
    MASKED = "masked"
    ASSEMBLED = "assembled"
    SEPARATE = "separate"

    @property
    def nested(self) -> bool:
        """Whether the value at a level is a part of the whole value."""
        return self in (Kind.WHOLE, Kind.MASKED, Kind.ASSEMBLED)


@dataclass(frozen=True)
class Layer:
    """The weights of a layer, and the dimensions of them that are contracted."""

    weight: fx.Node
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mask:
    """Which weights of a layer are read, and how many these are. Layers that are alike have one mask."""

    keep: npt.NDArray[np.bool_]
    count: int

    @property
    def is_whole(self) -> bool:
        return self.count == self.keep.size


class BlockTriangularDependence:
    """What is known of a program whose axes are cut into chunks: of every node, how its value differs between levels.

    `widths` are those of all levels, cheapest first, the last one empty. `alone`: nodes of which every level is to have
    a value of its own, wherever no layer after them makes one for all levels.
    """

    def __init__(
        self, program: Program, axes: Axes, widths: Sequence[Widths], alone: Set[fx.Node] = frozenset()
    ) -> None:
        self.program, self.axes, self.widths = program, axes, widths
        self.layers: dict[fx.Node, Layer] = {}
        self._masks: dict[tuple[tuple[bytes, bytes], ...], Mask] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        narrowed = {factor for one in widths for factor in one}
        self.chunk_of = {factor: self._chunks(factor) for factor in narrowed}
        self.chunk_widths: list[Widths] = [  # the sizes of the chunks that each level adds
            {factor: int((chunks == level).sum()) for factor, chunks in self.chunk_of.items()}
            for level in range(len(widths))
        ]
        self.types = [types_at(program, axes, one) for one in widths]  # of all values, at each level
        differs = {node for types in self.types[:-1] for node in reached_by(program, types)}
        self.parameters = Layers(program).constant.keys()  # what depends on tensors of the program alone
        for node in program.graph.nodes:
            if node.op == "get_attr":
                self.kinds[node] = Kind.WHOLE if self.narrowed_dims(node) else Kind.SAME
            elif node.op != "output":
                self.kinds[node] = self._kind(node) if node in differs else Kind.SAME
        self._set_separate(alone)

    def _set_separate(self, alone: Set[fx.Node]) -> None:
        """Take some nodes, and what depends on them, from the values of all levels, unless a later one of these needs
        them."""
        last: set[fx.Node] = set()  # with nothing behind that makes a value for all levels of it but by channels alone
        for node in reversed(self.program.graph.nodes):
            kind = self.kinds[node] if node.op == "call_function" else Kind.SAME
            cheap = kind is Kind.WHOLE and traits(node).macs is None
            if (cheap or kind is Kind.SEPARATE) and all(user.op == "output" or user in last for user in node.users):
                last.add(node)
        for node in self.program.graph.nodes:
            if node in alone and node in self.parameters:
                self.kinds[node] = Kind.SEPARATE
            sources = (one for one in node.all_input_nodes if one in last)
            if node in last and (node in alone or any(self.kinds[one] is Kind.SEPARATE for one in sources)):
                self.kinds[node] = Kind.SEPARATE

    def _chunks(self, factor: Factor) -> Places:
        """The first level that keeps each element of a factor."""
        size = factor.size.coefficient
        kept = [one.get(factor, size) for one in self.widths]
        return np.searchsorted(kept, np.arange(size), side="right").astype(np.int64)

    def _kind(self, node: fx.Node) -> Kind:
        if isinstance(type_of(node), Size) or not self._wide(node):
            return Kind.SEPARATE
        sources = node.all_input_nodes
        separate = any(self.kinds[one] is Kind.SEPARATE and not isinstance(type_of(one), Size) for one in sources)
        mixes = any(factor in self.chunk_of for factor in self.axes.mixed.get(node, ()))
        if isinstance(type_of(node), tuple):
            return Kind.SEPARATE if separate or mixes else Kind.WHOLE
        layer = self._layer(node) if mixes else None
        if layer is not None:
            self.layers[node] = layer
        if separate:
            return Kind.ASSEMBLED
        return Kind.MASKED if layer is not None else Kind.ASSEMBLED if mixes else Kind.WHOLE

    def _layer(self, node: fx.Node) -> Layer | None:
        mixed = self.axes.mixed[node] & self.chunk_of.keys()
        line = notation_of(node)
        for one in contractions(node):
            expressions, dims = self.axes.dims[one.weight], (one.columns, *one.others)
            if one.weight not in self.parameters or one.input in self.parameters or len(expressions) < 2:
                continue
            # What the operands have in common they have in common with the weight: then elements of it can be masked.
            met = {leaf for dim in dims for leaf in leaves(expressions[dim])}
            if line is not None and len(line.contracted) == len(dims) and mixed <= met:
                return Layer(one.weight, dims)
        return None

    def _wide(self, node: fx.Node) -> bool:
        return any(self.is_narrowed(expr) for dims in self.results(node) for expr in dims)

    def results(self, node: fx.Node) -> tuple[Any, ...]:
        """The axes of every result of a node."""
        dims = self.axes.dims[node]
        return dims if isinstance(type_of(node), tuple) else (dims,)

    @cached_property
    def chunk_types(self) -> list[dict[fx.Node, Any]]:
        """The types of what each level adds to all values."""
        return [types_at(self.program, self.axes, one) for one in self.chunk_widths]

    @cached_property
    def separate(self) -> frozenset[fx.Node]:
        """The nodes that have a separate value for every level."""
        return frozenset(node for node, kind in self.kinds.items() if kind is Kind.SEPARATE)

    def is_narrowed(self, expr: Expr) -> bool:
        return any(leaf in self.chunk_of for leaf in leaves(resolve(expr)))

    def narrowed_dims(self, node: fx.Node) -> list[int]:
        """The dimensions of a node, one tensor, that differ between levels."""
        return [dim for dim, expr in enumerate(self.axes.dims[node]) if self.is_narrowed(expr)]

    def is_flat(self, node: fx.Node) -> bool:
        """Whether one dimension only differs between levels: then what a level adds is a piece of it."""
        return isinstance(type_of(node), TensorType) and len(self.narrowed_dims(node)) == 1

    def chunks(self, expr: Expr, counted: Callable[[Factor], bool] = lambda factor: True) -> Places:
        """The first level that keeps each element of a dimension, as far as it depends on the factors `counted`."""
        expr = resolve(expr)
        if isinstance(expr, Factor):
            known = self.chunk_of.get(expr)
            return known if known is not None and counted(expr) else np.zeros(expr.size.coefficient, dtype=np.int64)
        if isinstance(expr, Sum):
            return np.concatenate([self.chunks(part, counted) for part in expr.parts])
        result = np.zeros(1, dtype=np.int64)
        for part in expr.parts:
            result = np.maximum(result[:, None], self.chunks(part, counted)[None, :]).reshape(-1)
        return result

    def kept(self, expr: Expr, level: int) -> Places:
        """The elements of a dimension that a level keeps."""
        return self.axes.indices(expr, self.widths[level])

    def new(self, expr: Expr, level: int) -> Places:
        """Where, among the elements that a level keeps, those are which it adds."""
        return np.flatnonzero(self.chunks(expr)[self.kept(expr, level)] == level)

    def is_cut(self, expr: Expr, level: int) -> bool:
        """Whether what a level adds to a dimension is what is left when every axis is cut to the size of its chunk:
        every part of it has just one axis with a chunk."""
        expr = resolve(expr)
        if isinstance(expr, Factor):
            return expr in self.chunk_of and self.chunk_widths[level][expr] > 0
        if isinstance(expr, Sum):
            return all(self.is_cut(part, level) for part in expr.parts)
        narrowed = [part for part in expr.parts if self.is_narrowed(part)]
        return len(narrowed) == 1 and self.is_cut(narrowed[0], level)

    # Layers.

    def has_rows(self, node: fx.Node) -> bool:
        """Whether what a level adds to the result of a node are rows of a layer's weights."""
        layer = self.layers.get(node)
        if layer is None or not self.is_flat(node):
            return False
        dims = self.axes.dims[layer.weight]
        contracted = [leaf for dim in layer.dims for leaf in leaves(dims[dim]) if leaf in self.chunk_of]
        others = [one for one in node.all_input_nodes if one is not layer.weight and self.narrowed_dims(one)]
        return (
            len([dim for dim in self.narrowed_dims(layer.weight) if dim not in layer.dims]) == 1
            and all(leaf in self.axes.mixed[node] for leaf in contracted)
            and all(self.is_flat(one) for one in others)
        )

    def mask(self, node: fx.Node, level: int) -> Mask:
        """Which weights of a layer a level reads, by whether they read no later chunk than they write; dimensions
        without chunks have size 1."""
        layer, mixed = self.layers[node], self.axes.mixed[node]
        chunks: list[tuple[Places, Places]] = []
        for dim, expr in enumerate(self.axes.dims[layer.weight]):
            read = write = np.zeros(1, dtype=np.int64)
            if self.is_narrowed(expr):
                kept = self.kept(expr, level)
                read = self.chunks(expr, lambda f, dim=dim: dim in layer.dims and f in mixed)[kept]  # type: ignore[misc]
                write = self.chunks(expr, lambda f, dim=dim: dim not in layer.dims or f not in mixed)[kept]  # type: ignore[misc]
            chunks.append((read, write))
        key = tuple((read.tobytes(), write.tobytes()) for read, write in chunks)
        if key not in self._masks:  # many layers are alike
            keep = _mask(chunks)
            self._masks[key] = Mask(keep, int(keep.sum()))
        return self._masks[key]

    def blocks(self, node: fx.Node, level: int) -> Blocks:
        """Of every level up to one, the rows of a layer's weights that it adds and the columns that these read; empty
        where these are not products that the layer can be cut into."""
        layer = self.layers.get(node)
        if layer is None or len(layer.dims) > 1 or not self.has_rows(node):
            return ()
        dims = self.axes.dims[layer.weight]
        (column,) = layer.dims
        (row,) = (dim for dim in self.narrowed_dims(layer.weight) if dim != column)
        rows, columns = (self.chunks(dims[dim])[self.kept(dims[dim], level)] for dim in (row, column))
        blocks = tuple((np.flatnonzero(rows == one), np.flatnonzero(columns <= one)) for one in range(level + 1))
        return blocks if blocks_of(node, layer.weight, (row, column), blocks) else ()


def _mask(chunks: Sequence[tuple[Places, Places]]) -> npt.NDArray[np.bool_]:
    """Where the latest chunk that is read is no later than the one that is written, of those along every dimension."""
    reads, writes = np.zeros((), dtype=np.int64), np.zeros((), dtype=np.int64)
    for read, write in chunks:
        reads, writes = np.maximum(reads[..., None], read), np.maximum(writes[..., None], write)
    result: npt.NDArray[np.bool_] = reads <= writes
    return result
