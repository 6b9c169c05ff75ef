"""The layout of an ensemble's members in tensors, and how one layout becomes another.

Every node of the backbone has a `Value`: how many members it stands for, and their layout in tensors of the new graph:

* `"one"`: a single tensor, because one member is asked for or all are the same;
* `"batch"`: members outermost in the batch dimension: `(members * n, ...)`;
* `"channel"`: members outermost in the second dimension: `(n, members * c, ...)`;
* `"stack"`: no batch, members outermost in the first dimension: stacked parameters;
* `"separate"`: a separate tensor for each of them.

    (members * n, c)  ->  unflatten (members, n, c)  ->  transpose (n, members, c)  ->  flatten (n, members * c)

Where values of several depths meet, the shallower one is repeated for the children of its members: a split needs no
operation of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, Size, TensorType, meta_of
from anytimeify.ir.node_meta import type_of
from anytimeify.passes.rewrites.replicate import Tree
from anytimeify.rules.factors import Expr, Factor, Product, leaves, resolve

__all__ = ["BatchingLayouts", "Layout", "Value", "grown_type", "is_batch"]

aten = torch.ops.aten
Layout: TypeAlias = Literal["one", "batch", "channel", "stack", "separate"]


@dataclass(frozen=True)
class Value:
    """What a node of the backbone is in the new graph. `nodes` has one entry, but for `"separate"` one per member."""

    depth: int
    layout: Layout
    nodes: tuple[Any, ...]

    @property
    def node(self) -> Any:
        assert len(self.nodes) == 1
        return self.nodes[0]


class BatchingLayouts:
    """The values of the backbone's nodes in one graph for the first `leaves` leaves of a tree, and their other forms,
    appended to a builder."""

    def __init__(self, builder: Builder, program: Program, axes: Axes, tree: Tree, leaves: int, prefix: str) -> None:
        self.builder, self.program, self.axes, self.tree = builder, program, axes, tree
        self.leaves, self.prefix = leaves, prefix
        self.values: dict[fx.Node, Any] = {}
        self.forms: dict[tuple[fx.Node, str, int], Any] = {}  # made once however often they are read
        self.current: fx.Node = next(iter(program.graph.nodes))

    def count(self, depth: int) -> int:
        """Members at a depth."""
        return self.tree.active(depth, self.leaves)

    # Other forms of a value.

    def members_of(self, source: fx.Node, depth: int | None = None) -> list[Any]:
        """A tensor for every member at a depth, by default the value's own."""
        value: Value = self.values[source]
        key = (source, "separate", value.depth)
        if key not in self.forms:
            self.forms[key] = self._parted(source, value)
        own: list[Any] = self.forms[key]
        if depth is None or depth == value.depth:
            return own
        return [own[self.tree.parent(m, depth, value.depth)] for m in range(self.count(depth))]

    def _parted(self, source: fx.Node, value: Value) -> list[Any]:
        count, kind = self.count(value.depth), type_of(source)
        if value.layout == "one":
            return [value.node] * count
        if value.layout == "separate":
            return list(value.nodes)
        if value.layout == "stack" and source.op == "get_attr":
            return [self.of_stack(source, value.node, member) for member in range(count)]
        dim = self._dim_of(source, value.layout)
        target, args = (
            (aten.chunk.default, (value.node, count, dim)) if kind.shape else (aten.unbind.int, (value.node,))
        )
        split = self.emit(target, args, f"{source.name}_members")
        return [self.emit(operator.getitem, (split, m), f"{source.name}_member") for m in range(count)]

    def form(self, source: fx.Node, layout: Literal["batch", "channel", "stack"], depth: int) -> fx.Node:
        """The value of a node as one tensor that holds the members at `depth` in a layout. The node must have a batch
        (in its first dimension for `"channel"`), or none for `"stack"`."""
        key = (source, layout, depth)
        if key not in self.forms:
            self.forms[key] = self._formed(source, layout, depth)
        node: fx.Node = self.forms[key]
        return node

    def _formed(self, source: fx.Node, layout: Literal["batch", "channel", "stack"], depth: int) -> fx.Node:
        value = self.deepened(source, depth)
        dim, count, kind = self._dim_of(source, layout), self.count(depth), type_of(source)
        if value.layout == layout:
            node: fx.Node = value.node
            return node
        if value.layout == "one":  # the same for all
            return self.repeat(value.node, dim, count, source)
        if value.layout == "separate":
            if not kind.shape:
                return self.emit(aten.stack.default, (list(value.nodes), 0), f"{source.name}_stack")
            return self.emit(aten.cat.default, (list(value.nodes), dim), f"{source.name}_joined")
        assert {value.layout, layout} == {"batch", "channel"}
        assert self.batch_dim(source) == 0
        return self.exchanged(value.node, value.layout == "batch", count, f"{source.name}_{layout}")

    def _dim_of(self, source: fx.Node, layout: Layout) -> int:
        return self.batch_dim(source) if layout == "batch" else 1 if layout == "channel" else 0

    def exchanged(self, node: fx.Node, to_channel: bool, count: int, name: str) -> fx.Node:
        """`(members * n, c, ...)` to `(n, members * c, ...)`, or back."""
        at = 0 if to_channel else 1
        wide = self.unflatten(node, at, count, name)
        turned = self.transpose(wide, 0, 1, name)
        return self.flatten(turned, 1 - at, name)

    def deepened(self, source: fx.Node, depth: int) -> Value:
        """The value for the members at a depth: those of a shallower one repeated for their children."""
        value: Value = self.values[source]
        if value.depth == depth or value.layout == "one":
            return value
        if value.layout in ("separate", "stack"):
            return Value(depth, "separate", tuple(self.members_of(source, depth)))
        count, dim = self.count(value.depth), self._dim_of(source, value.layout)
        times = self.tree.members(depth) // self.tree.members(value.depth)
        node = self.unflatten(value.node, dim, count, source.name)
        node = self.emit(aten.repeat_interleave.self_int, (node, times, dim), f"{source.name}_split")
        if self.count(depth) < count * times:
            node = self.emit(aten.slice.Tensor, (node, dim, 0, self.count(depth)), f"{source.name}_split")
        return Value(depth, value.layout, (self.flatten(node, dim, source.name),))

    def repeat(self, node: fx.Node, dim: int, count: int, source: fx.Node) -> fx.Node:
        """One tensor for `count` members, members outermost in a dimension."""
        kind: TensorType = type_of(node)
        name = f"{source.name}_repeated"
        if not kind.shape:
            return self.emit(aten.repeat.default, (node, [count]), name)
        times = [count if index == dim else 1 for index in range(len(kind.shape))]
        return self.emit(aten.repeat.default, (node, times), name)

    # Parts of a stack.

    def rows(self, node: fx.Node) -> int:
        """Entries of one member along the first dimension of a stack."""
        shape = type_of(node).shape
        return shape[0].coefficient if shape else 1

    def of_stack(self, node: fx.Node, stack: fx.Node, member: int) -> fx.Node:
        """The tensor of one member."""
        rows = self.rows(node)
        part = self.part(stack, member * rows, (member + 1) * rows, f"{node.name}_part")
        if not type_of(node).shape:
            return self.emit(aten.select.int, (part, 0, 0), f"{node.name}_scalar", part=True)
        return part

    def part(self, stack: fx.Node, start: int, end: int, name: str) -> fx.Node:
        shape = type_of(stack).shape
        if (start, end) == (0, shape[0].coefficient):
            return stack
        return self.emit(aten.slice.Tensor, (stack, 0, start, end), name, part=True)

    # Small steps.

    def unflatten(self, node: fx.Node, dim: int, count: int, name: str) -> fx.Node:
        """`count * n` as two dimensions `count`, `n`."""
        kind: TensorType = type_of(node)
        inner = kind.shape[dim] // Size(count)
        args = (node, dim, [count, inner.coefficient if inner.static else -1])
        return self.emit(aten.unflatten.int, args, f"{name}_wide")

    def flatten(self, node: fx.Node, dim: int, name: str) -> fx.Node:
        """A dimension and the one after it as one."""
        return self.emit(aten.flatten.using_ints, (node, dim, dim + 1), f"{name}_flat")

    def transpose(self, node: fx.Node, one: int, other: int, name: str) -> fx.Node:
        return self.emit(aten.transpose.int, (node, one, other), f"{name}_turned")

    def unsqueeze(self, node: fx.Node, dim: int, name: str) -> fx.Node:
        return self.emit(aten.unsqueeze.default, (node, dim), f"{name}_more")

    def squeeze(self, node: fx.Node, dim: int, name: str) -> fx.Node:
        return self.emit(aten.squeeze.dims, (node, [dim]), f"{name}_less")

    def flatten_all(self, node: fx.Node, first: int, last: int, name: str) -> fx.Node:
        """Several neighbouring dimensions as one."""
        last %= len(type_of(node).shape)
        if first == last:
            return node
        return self.emit(aten.flatten.using_ints, (node, first, last), f"{name}_rows")

    def emit(
        self,
        target: Any,
        args: tuple[Any, ...],
        name: str,
        *,
        kind: Any = None,
        kwargs: dict[str, Any] | None = None,
        part: bool = False,
        exact: bool = False,
    ) -> fx.Node:
        """A call for the current node. `kind`: the type that it has to have; given for the backbone's own operations,
        whose types need not follow from their operands'."""
        meta = meta_of(self.current, part=part) | ({} if kind is None else {"type": kind})
        return self.builder.call(target, args, kwargs or {}, name if exact else self.prefix + name, meta)

    # What is known of a node.

    def batch_dim(self, node: fx.Node) -> int:
        """The dimension whose outermost factor is the batch. `has_batch` says whether there is one."""
        place = self.find_batch(node)
        assert place is not None
        return place

    def find_batch(self, node: fx.Node) -> int | None:
        """The one dimension whose outermost factor is the batch; None where there is none, or where it is not so."""
        return self.batch_place(self.axes.dims[node])

    def batch_place(self, dims: Sequence[Expr]) -> int | None:
        places = [dim for dim, expr in enumerate(dims) if any(map(is_batch, leaves(resolve(expr))))]
        return places[0] if len(places) == 1 and is_batch(_outermost(resolve(dims[places[0]]))) else None

    def batch_factor(self, dims: Sequence[Expr]) -> Factor | None:
        """What enumerates the samples."""
        place = self.batch_place(dims)
        return None if place is None else _outermost(resolve(dims[place]))

    def has_batch(self, node: fx.Node) -> bool:
        """Whether a tensor may differ between samples: a dimension of it is, or has the size of, a batch."""
        return any(
            is_batch(leaf) or not leaf.size.static for expr in self.axes.dims[node] for leaf in leaves(resolve(expr))
        )


def grown_type(kind: TensorType, dim: int, count: int) -> TensorType:
    """The type with `count` members in a dimension."""
    if not kind.shape:
        return kind.with_shape((Size(count),))
    return kind.with_shape((*kind.shape[:dim], Size(count) * kind.shape[dim], *kind.shape[dim + 1 :]))


def is_batch(leaf: Factor) -> bool:
    """Whether a factor enumerates samples; constant parts of what the batch was merged with do not."""
    return leaf.pin is not None and leaf.pin.kind == "batch" and not leaf.size.static


def _outermost(expr: Expr) -> Factor:
    while not isinstance(expr, Factor):
        if not isinstance(expr, Product) or not expr.parts:
            return Factor(Size(1))
        expr = expr.parts[0]
    return expr
