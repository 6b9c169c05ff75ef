"""The replicas of a network in one graph: fused where a rule takes the operation, otherwise one member after the other.

    y0 = cumsum(x0, 0)      ->      x0, x1 = chunk(x, 2, 0)         # no rule: member by member
    y1 = cumsum(x1, 0)              y = cat([cumsum(x0, 0), cumsum(x1, 0)], 0)

The report lists the operations that are not fused.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, Size, names, result_of
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound, rebind
from anytimeify.passes.fusion.batching_layout import BatchingLayouts, Layout, Value
from anytimeify.passes.rewrites.replicate import Tree
from anytimeify.rules import Call, Kind, Resize, has_kind, rule_of, traits

__all__ = ["FuseRule", "Replicas"]

aten = torch.ops.aten
FuseRule: TypeAlias = "Callable[[Replicas, fx.Node], Value | tuple[Value, ...] | None]"


class Replicas(BatchingLayouts):
    """One graph for the first `leaves` leaves of a tree, appended to a builder whose tensors are stacks.

    `rules` fuse operations of a kind; a node that they do not take, or give None for, runs member by member and is
    counted in `separate`."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        axes: Axes,
        tree: Tree,
        tensors: Mapping[str, int],
        leaves_wanted: int,
        prefix: str,
        rules: Mapping[Kind, FuseRule],
        otherwise: FuseRule | None,
    ) -> None:
        super().__init__(builder, program, axes, tree, leaves_wanted, prefix)
        self.tensors, self.rules, self.otherwise = tensors, rules, otherwise
        self.separate: Counter[str] = Counter()

    def run(self) -> list[Value]:
        """Appends everything; one value per output of the program."""
        for node in self.program.graph.nodes:
            if node.op == "output":
                continue
            self.current = node
            if node.op == "placeholder":
                self.values[node] = Value(0, "one", (self.builder.shared[node],))
            elif node.op == "get_attr":
                self.values[node] = self.tensor(node)
            else:
                self.values[node] = self.call(node)
        return [self.values[node] for node in self.program.outputs]

    def tensor(self, node: fx.Node) -> Value:
        """The part of a stack that the wanted members have."""
        depth = self.tensors[str(node.target)]
        count, read = self.count(depth), self.builder.shared[node]
        if depth == 0:
            return Value(0, "one", (read,))
        if count == 1:
            return Value(depth, "one", (self.of_stack(node, read, 0),))
        if count < self.tree.members(depth):
            read = self.part(read, 0, count * self.rows(node), f"{node.name}_part")
        return Value(depth, "stack", (read,))

    def call(self, node: fx.Node) -> Any:
        several = result_of(node)
        if several is not None:
            return self.values[several][node.args[1]]
        if isinstance(type_of(node), Size):
            return self.integer(node)
        depth = self.deepest(node)
        if self.count(depth) == 1:
            return self.single(node, depth)
        rule = self.rules.get(traits(node).kind)
        fused = rule(self, node) if rule is not None else None
        if fused is None and self.otherwise is not None:
            fused = self.otherwise(self, node)
        return fused if fused is not None else self.member_by_member(node, depth)

    def integer(self, node: fx.Node) -> Value:
        """Sizes are those of one member, so they are the same for all of them."""
        if has_kind(node, "size"):
            source, dim = self.values[node.all_input_nodes[0]], node.args[1]
            whole = type_of(source.nodes[0]).shape[dim]
            size = self.emit(aten.sym_size.int, (source.nodes[0], dim), node.name)
            if whole != type_of(node):
                times = whole // type_of(node)
                size = self.emit(operator.floordiv, (size, times.coefficient), f"{node.name}_each")
            return Value(0, "one", (size,))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: self.values[source].node)
        return Value(0, "one", (self.emit(node.target, args, node.name, kind=type_of(node), kwargs=kwargs),))

    def single(self, node: fx.Node, depth: int) -> Any:
        """Everything is of one member: the backbone's own operation."""
        if depth == 0 and all(
            self.values[source].nodes[0] is self.builder.shared[source] for source in node.all_input_nodes
        ):
            return self.result(depth, "one", self.builder.shared[node], node)
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: self.values[source].nodes[0])
        return self.result(
            depth, "one", self.emit(node.target, args, node.name, kind=type_of(node), kwargs=kwargs), node
        )

    def result(self, depth: int, layout: Layout, node: fx.Node, like: fx.Node) -> Any:
        """A value, or one for each of several results."""
        kinds = type_of(node)
        if not isinstance(kinds, tuple):
            return Value(depth, layout, (node,))
        items = [self.emit(operator.getitem, (node, i), f"{like.name}_{i}") for i in range(len(kinds))]
        return tuple(Value(depth, layout, (item,)) for item in items)

    def member_by_member(self, node: fx.Node, depth: int) -> Any:
        """One call for every member: the meaning that a fused form has to have."""
        self.separate[str(node.target)] += 1
        count = self.count(depth)
        sources = {source: self.members_of(source, depth) for source in node.all_input_nodes}
        results = []
        for member in range(count):
            own = {source: nodes[member] for source, nodes in sources.items()}
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), own.__getitem__)
            name = names.member_prefix(member) + node.name
            results.append(self.emit(node.target, args, name, kind=type_of(node), kwargs=kwargs, exact=True))
        kinds = type_of(node)
        if not isinstance(kinds, tuple):
            return Value(depth, "separate", tuple(results))
        return tuple(
            Value(
                depth,
                "separate",
                tuple(
                    self.emit(
                        operator.getitem, (one, index), f"{names.member_prefix(member)}{node.name}_{index}", exact=True
                    )
                    for member, one in enumerate(results)
                ),
            )
            for index in range(len(kinds))
        )

    def deepest(self, node: fx.Node) -> int:
        """Of all that a node reads."""
        return max((self.depth(source) for source in node.all_input_nodes), default=0)

    def depth(self, source: fx.Node) -> int:
        value = self.values[source]
        return max(one.depth for one in value) if isinstance(value, tuple) else int(value.depth)

    # The operation of a node on operands in another layout.

    def written(self, node: fx.Node, depth: int, layout: Layout, sources: Mapping[fx.Node, fx.Node], kind: Any) -> Any:
        """The operation of a node on operands in another layout, its sizes re-evaluated."""
        types = {source: type_of(source) for source in node.all_input_nodes}
        types.update({source: type_of(new) for source, new in sources.items()})
        target, arguments = self.resized(node, types, kind)
        arguments = self._sized(arguments)
        args, kwargs = rebind(target, arguments)

        def new(one: fx.Node) -> fx.Node:
            if one in sources:
                return sources[one]
            node: fx.Node = self.values[one].node if one in self.values else one
            return node

        args, kwargs = fx.map_arg((args, kwargs), new)
        return self.result(depth, layout, self.emit(target, args, node.name, kind=kind, kwargs=kwargs), node)

    def _sized(self, value: Any) -> Any:
        """Sizes times a number as nodes of the new graph."""
        if isinstance(value, dict):
            return {name: self._sized(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._sized(one) for one in value)
        if not isinstance(value, Times):
            return value
        size = self.values[value.node].node
        return self.emit(operator.mul, (size, value.factor.coefficient), f"{value.node.name}_all")

    def resized(self, node: fx.Node, types: Mapping[fx.Node, Any], kind: Any) -> tuple[Any, dict[str, Any]]:
        """The operation of a node and its arguments where operands have other types: its rule re-evaluates sizes."""
        rule = rule_of(node.target)
        if rule is None or rule.resize is None:
            return node.target, bound(node)
        resize = Resize(
            node,
            {**types, node: kind},
            lambda expr: self.axes.size(expr, {}),
            self.axes.memo[node],
            lambda value, new: self._scaled(value, new),
        )
        changed = rule.resize(resize)
        if isinstance(changed, Call):
            return changed.target, changed.arguments
        return node.target, {**resize.arguments, **changed}

    def _scaled(self, value: Any, new: Size) -> Any:
        if not isinstance(value, fx.Node):
            return new.coefficient
        old: Size = type_of(value)
        return value if old == new else Times(value, new // old)


@dataclass(frozen=True)
class Times:
    """A size of the backbone times a number, until the new graph has a node for it."""

    node: fx.Node
    factor: Size
