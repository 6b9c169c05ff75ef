"""`narrow`: keep a prefix of some axis groups. Widths, triangular connectivity and fewer leaves are all made of it.

    y = linear(x, w)            ->      y = linear(x, slice(w, 0, 0, 4))

What is rewritten:

1. a parameter or buffer whose dimensions are narrowed is read through views: `slice` where a prefix is kept,
   `index_select` where the kept elements are scattered (concatenations, inner parts of products);
2. arguments that are sizes (`view`, `expand`, `groups`, `split`, normalised shapes) are re-evaluated by the operation's
   rule; numbers that are marked as counts of an axis are computed anew;
3. everything that no narrowed axis reaches is shared with the graph it came from.

A pure selection, so nothing is refused here; what may be narrowed was decided by the analysis.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Set
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import descendants
from anytimeify.ir import Program, Size, TensorType, meta_of
from anytimeify.ir.node_meta import counts_of, type_of
from anytimeify.ir.schema import bound, rebind
from anytimeify.rules import Call, Resize, has_kind, rule_of

__all__ = [
    "Clone",
    "Private",
    "clone_narrowed",
    "clone_region",
    "narrow",
    "narrow_tensor",
    "reached",
    "reached_by",
    "types_at",
]

aten = torch.ops.aten
Private: TypeAlias = Callable[[fx.Node, fx.Node, Set[fx.Node]], str | None]


@rewrite("narrow")
def narrow(program: Program, axes: Axes, widths: Widths) -> Program:
    """The program with every narrowed axis cut, reading its tensors through views."""
    builder = Builder.copying(program)
    env = clone_narrowed(builder, program, axes, widths, prefix="")
    return builder.build([env[node] for node in program.outputs], program.graph.output_node())


def narrow_tensor(tensor: Tensor, axes: tuple[Any, ...], analysis: Axes, widths: Widths) -> Tensor:
    """A small copy of the part of a tensor that a level reads, parameters staying parameters."""
    part = tensor.detach()
    for dim, expr in enumerate(axes):
        if analysis.narrowed(expr, widths):
            part = part.index_select(dim, torch.from_numpy(analysis.indices(expr, widths)).to(tensor.device))
    part = part.clone()
    return torch.nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else part


def reached(program: Program, axes: Axes, widths: Widths) -> Set[fx.Node]:
    """The calls whose result differs from the full graph's, at some widths."""
    return reached_by(program, types_at(program, axes, widths))


def clone_narrowed(
    builder: Builder,
    program: Program,
    axes: Axes,
    widths: Widths,
    *,
    prefix: str,
    private: Private | None = None,
    also: Set[fx.Node] = frozenset(),
) -> dict[fx.Node, fx.Node]:
    """Append the narrowed program; nodes that no narrowed axis reaches are those of the full copy, but for those
    in `also` and what depends on them.

    `private(user, source, reached)` names the tensor of its own that `user` reads in place of `source`, if any;
    `reached` are the nodes whose values differ from the full ones.
    """
    clone = Clone(builder, program, axes, widths, prefix, private)
    clone.reached = reached_by(program, clone.types, also)
    return clone.run()


def clone_region(
    builder: Builder,
    program: Program,
    axes: Axes,
    widths: Widths,
    region: Set[fx.Node],
    instead: Mapping[fx.Node, fx.Node],
    *,
    prefix: str,
    private: Private,
) -> dict[fx.Node, fx.Node]:
    """Append a copy of the calls in `region`, some of its axes at other widths, which may be larger ones. Nodes
    outside are those of the full copy; each key of `instead` is replaced by the copy of its value."""
    clone = Clone(builder, program, axes, widths, prefix, private)
    clone.reached, clone.instead = region, instead
    return clone.run()


class Clone:
    """One narrowed clone, while it is appended. Subclasses may read operands from elsewhere.

    `types`: those at these widths (`types_at`), where they are known already."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        axes: Axes,
        widths: Widths,
        prefix: str,
        private: Private | None,
        *,
        types: Mapping[fx.Node, Any] | None = None,
    ) -> None:
        self.builder, self.program, self.axes, self.widths = builder, program, axes, widths
        self.prefix, self.private = prefix, private
        self.types = types_at(program, axes, widths) if types is None else types
        self.instead: Mapping[fx.Node, fx.Node] = {}
        self.given: Mapping[fx.Node, fx.Node] = {}  # nodes whose copies are there already
        self.env: dict[fx.Node, fx.Node] = {}
        self.views: dict[fx.Node, fx.Node] = {}

    @cached_property
    def reached(self) -> Set[fx.Node]:
        """The calls that the clone has of its own."""
        return reached_by(self.program, self.types)

    def run(self) -> dict[fx.Node, fx.Node]:
        for node in self.program.graph.nodes:
            if node in self.given:
                self.env[node] = self.given[node]
            elif node in self.instead:
                self.env[node] = self.env[self.instead[node]]
            elif node in self.reached and node.op == "call_function":
                self.env[node] = self.call(node)
            elif node.op != "output":
                self.env[node] = self.builder.shared[node]  # tensors too: their parts are read where they are used
        for node in self.program.outputs:
            if node.op == "get_attr":
                self.env[node] = self.part(node)
        return self.env

    def call(
        self,
        node: fx.Node,
        *,
        types: Mapping[fx.Node, Any] | None = None,
        instead: Mapping[fx.Node, fx.Node] | None = None,
    ) -> fx.Node:
        """Append a call at these widths. `instead` gives operands to read in place of what `read` gives, and `types`
        are those that follow."""
        types = self.types if types is None else types
        target: Any = node.target
        args, kwargs = node.args, dict(node.kwargs)
        rule = rule_of(target)
        if rule is not None and rule.resize is not None:
            resize = Resize(
                node,
                types,
                lambda expr: self.axes.size(expr, self.widths),
                self.axes.memo[node],
                lambda value, new: self.scale(node, value, new),
            )
            changed = rule.resize(resize)
            arguments = changed.arguments if isinstance(changed, Call) else {**resize.arguments, **changed}
            target = changed.target if isinstance(changed, Call) else target
            args, kwargs = rebind(target, arguments)
        if counts_of(node):
            args, kwargs = rebind(target, {**bound(node), **self.counted(node)})
        given = instead or {}
        args, kwargs = fx.map_arg(
            (args, kwargs), lambda source: given[source] if source in given else self.read(node, source)
        )
        meta = {**node.meta, "type": types[node]}
        meta.pop("counts", None)  # it is a number of this width
        return self.builder.call(target, args, kwargs, self.prefix + node.name, meta)

    def counted(self, node: fx.Node) -> dict[str, int | float]:
        """The numbers of a call that count axes which these widths narrow, as they are at these widths."""
        by_name = {one.name: one for one in self.program.graph.nodes}
        found: dict[str, int | float] = {}
        for argument, power, places in counts_of(node):
            exprs = [self.axes.dims[by_name[name]][dim] for name, dim in places]
            if any(self.axes.narrowed(expr, self.widths) for expr in exprs):
                size = math.prod(self.axes.size(expr, self.widths).coefficient for expr in exprs)
                found[argument] = size if power == 1 else size**power
        return found

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        """What a clone reads in place of `source`; nodes that resizing has just made stay themselves."""
        if source not in self.env:
            return source
        if source.op != "get_attr":
            return self.env[source]
        own = self.private(user, source, self.reached) if self.private is not None else None
        return self.part(source) if own is None else self.own(source, own)

    def own(self, source: fx.Node, own: str) -> fx.Node:
        """The node that reads a tensor of the clone's own, which starts as the part of `source` that is kept."""
        if own not in self.builder.tensors:
            tensor = self.program.tensors[str(source.target)]
            small = narrow_tensor(tensor, self.axes.dims[source], self.axes, self.widths)
            return self.builder.attribute(own, small, source)
        return self.builder.attribute(own, self.builder.tensors[own], source)

    def part(self, source: fx.Node) -> fx.Node:
        """The part of a tensor that is kept, as a chain of selections; the tensor itself if nothing is cut."""
        if source in self.views:
            return self.views[source]
        node = self.builder.shared[source]
        for dim, expr in enumerate(self.axes.dims[source]):
            if not self.axes.narrowed(expr, self.widths):
                continue
            kept = self.axes.indices(expr, self.widths)
            meta = meta_of(source, part=True)
            name = f"{self.prefix}{source.name}_part{dim}"
            if np.array_equal(kept, np.arange(len(kept))):
                node = self.builder.call(aten.slice.Tensor, (node, dim, 0, len(kept)), {}, name, meta)
            else:
                index = self.builder.constant(kept, source)
                node = self.builder.call(aten.index_select.default, (node, dim, index), {}, name, meta)
        self.views[source] = node
        return node

    def scale(self, user: fx.Node, value: Any, new: Size) -> Any:
        """A size argument at its new value: a number, or the node that computes it (a batch of heads) multiplied."""
        if not isinstance(value, fx.Node):
            return new.coefficient
        now = self.types[value]
        if now == new:
            return value
        node = self.read(user, value)
        for target, factor in ((operator.mul, new.coefficient), (operator.floordiv, now.coefficient)):
            if factor != 1:
                name = f"{self.prefix}{value.name}_{target.__name__}"
                node = self.builder.call(target, (node, factor), {}, name, meta_of(user))
        return node


def types_at(program: Program, axes: Axes, widths: Widths) -> dict[fx.Node, Any]:
    """The types of all values at some widths."""
    types = {node: _type_at(node, axes, widths) for node in program.graph.nodes if node.op != "output"}
    _refresh_sizes(program, types)
    return types


def _type_at(node: fx.Node, axes: Axes, widths: Widths) -> Any:
    kind, dims = type_of(node), axes.dims.get(node, ())
    if isinstance(kind, TensorType):
        return axes.shape(dims, kind, widths)
    if isinstance(kind, tuple):
        return tuple(
            axes.shape(d, k, widths) if isinstance(k, TensorType) else k for d, k in zip(dims, kind, strict=True)
        )
    return kind


def reached_by(program: Program, types: Mapping[fx.Node, Any], also: Set[fx.Node] = frozenset()) -> Set[fx.Node]:
    """The calls whose result differs from the full graph's: in shape, because something that they read does, or
    because they are in `also`."""
    changed = (
        node for node in program.graph.nodes if node.op != "output" and (node in also or types[node] != type_of(node))
    )
    return {node for node in descendants(changed) if node.op == "call_function"}


def _refresh_sizes(program: Program, types: dict[fx.Node, Any]) -> None:
    """Sizes read off narrowed tensors are narrowed; arithmetic on constants is not."""
    for node in program.graph.nodes:
        if not isinstance(type_of(node), Size):
            continue
        if has_kind(node, "size"):
            types[node] = types[node.args[0]].shape[node.args[1]]
        elif node.target is operator.mul:
            factors = [types[arg] if isinstance(arg, fx.Node) else Size(int(arg)) for arg in node.args]
            types[node] = factors[0] * factors[1]
