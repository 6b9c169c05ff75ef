"""Keep the leading part of some axis groups: the one mechanism behind widths, triangular prefixes and fewer leaves.

What is rewritten:

1. a parameter or buffer whose dimensions are narrowed is read through views: `slice` where a prefix is kept,
   `index_select` where the kept entries are scattered (concatenations, inner parts of products);
2. arguments that are sizes (`view`, `expand`, `groups`, `split`, normalised shapes) are re-evaluated by the operation's
   rule;
3. everything that no narrowed axis reaches is shared with the graph it came from.

A pure selection, so nothing is refused here; what may be narrowed was decided by the analysis.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from anytimeify.axes import Axes, Widths
from anytimeify.ir import Program, Size, TensorType
from anytimeify.passes.project import ancestors
from anytimeify.rules import Call, Resize, rule_of
from anytimeify.schema import rebind

__all__ = ["Builder", "narrow", "narrow_tensor"]

aten = torch.ops.aten


def narrow(program: Program, axes: Axes, widths: Widths) -> Program:
    """The program with every narrowed axis cut, reading its tensors through views."""
    builder = Builder.copying(program)
    env = builder.clone_narrowed(program, axes, widths, prefix="")
    return builder.build([env[node] for node in program.outputs], program.graph.output_node())


def narrow_tensor(tensor: Tensor, axes: tuple[Any, ...], analysis: Axes, widths: Widths) -> Tensor:
    """A small copy of the part of a tensor that a level reads, parameters staying parameters."""
    part = tensor.detach()
    for dim, expr in enumerate(axes):
        if analysis.narrowed(expr, widths):
            part = part.index_select(dim, torch.from_numpy(analysis.indices(expr, widths)).to(tensor.device))
    part = part.clone()
    return torch.nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else part


@dataclass
class Builder:
    """A graph under construction: a full copy of one program, and narrowed clones of it."""

    graph: fx.Graph
    tensors: dict[str, Tensor]
    transient: set[str]
    shared: dict[fx.Node, fx.Node] = field(default_factory=dict)  # nodes of the source program -> their full copies
    _attributes: dict[str, fx.Node] = field(default_factory=dict)
    _constants: dict[bytes, str] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)  # names given so far, and how often each was asked for

    @staticmethod
    def copying(program: Program) -> Builder:
        """A builder that holds a full copy of a program, without its output."""
        builder = Builder(fx.Graph(), dict(program.tensors), set(program.transient))
        for node in program.graph.nodes:
            if node.op == "output":
                continue
            copy = builder.graph.node_copy(node, lambda source: builder.shared[source])
            copy.meta = dict(node.meta)
            builder.shared[node] = copy
            builder._names[copy.name] = 1
            if node.op == "get_attr":
                builder._attributes[str(node.target)] = copy
        return builder

    def build(self, outputs: Sequence[fx.Node], like: fx.Node) -> Program:
        """The program that returns `outputs`: tensors moved to the top, nodes that nothing needs left out. The output
        node takes its meta from `like`."""
        needed = ancestors(outputs)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for kinds in (("placeholder",), ("get_attr",), ("call_function",)):
            for node in self.graph.nodes:
                if node.op in kinds and (node.op == "placeholder" or node in needed):
                    copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs)).meta = dict(like.meta)
        return Program(graph, self.tensors, frozenset(self.transient))

    def attribute(self, name: str, tensor: Tensor, like: fx.Node, *, transient: bool = False) -> fx.Node:
        """The one node that reads a tensor, made where it does not exist yet; its origin is that of `like`."""
        if name not in self._attributes:
            self.tensors[name] = tensor
            if transient:
                self.transient.add(name)
            node = self.graph.create_node("get_attr", name, name=self._unique(name.replace(".", "_")))
            sizes = tuple(Size(n) for n in tensor.shape)
            node.meta = {"type": TensorType(sizes, tensor.dtype), "origin": like.meta["origin"]}
            self._attributes[name] = node
        return self._attributes[name]

    def _unique(self, name: str) -> str:
        candidate = name
        while candidate in self._names:
            candidate = f"{name}_{self._names[name]}"
            self._names[name] += 1
        self._names[candidate] = 1
        return candidate

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, meta: dict[str, Any]
    ) -> fx.Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name=self._unique(name))
        node.meta = meta
        return node

    def clone_narrowed(
        self,
        program: Program,
        axes: Axes,
        widths: Widths,
        *,
        prefix: str,
        private: Callable[[fx.Node, fx.Node], str | None] = lambda user, source: None,
    ) -> dict[fx.Node, fx.Node]:
        """Append the narrowed program; nodes that no narrowed axis reaches are those of the full copy.

        `private(user, source)` names the tensor of its own that `user` reads in place of `source`, if any.
        """
        types = {node: _type_at(node, axes, widths) for node in program.graph.nodes if node.op != "output"}
        _refresh_sizes(program, types)
        env: dict[fx.Node, fx.Node] = {}
        views: dict[fx.Node, fx.Node] = {}
        for node in program.graph.nodes:
            if node.op == "output":
                continue
            if node.op == "placeholder":
                env[node] = self.shared[node]
            elif node.op == "get_attr":
                # reading is lazy: a tensor that only private users read gets no view
                env[node] = self.shared[node]
            else:
                env[node] = self._clone_call(node, program, axes, widths, types, env, views, prefix, private)
        for node in program.outputs:
            if node.op == "get_attr":
                env[node] = self._view(node, axes, widths, views, prefix)
        return env

    def _clone_call(
        self,
        node: fx.Node,
        program: Program,
        axes: Axes,
        widths: Widths,
        types: Mapping[fx.Node, Any],
        env: Mapping[fx.Node, fx.Node],
        views: dict[fx.Node, fx.Node],
        prefix: str,
        private: Callable[[fx.Node, fx.Node], str | None],
    ) -> fx.Node:
        touched = types[node] != node.meta["type"] or any(
            types[source] != source.meta["type"] if source.op == "get_attr" else env[source] is not self.shared[source]
            for source in node.all_input_nodes
        )
        if not touched:
            return self.shared[node]

        def read(source: fx.Node) -> fx.Node:
            if source.op != "get_attr":
                return env[source]
            own = private(node, source)
            if own is not None:
                tensor = program.tensors[str(source.target)]
                if own not in self.tensors:
                    return self.attribute(own, narrow_tensor(tensor, axes.dims[source], axes, widths), source)
                return self.attribute(own, self.tensors[own], source)
            return self._view(source, axes, widths, views, prefix)

        target: Any = node.target
        arguments = None
        rule = rule_of(node.target)
        if rule is not None and rule.resize is not None:
            scale = self._scaler(node, types, prefix, env)
            resize = Resize(node, types, lambda expr: axes.size(expr, widths), axes.memo[node], scale)
            changed = rule.resize(resize)
            arguments = changed.arguments if isinstance(changed, Call) else {**resize.arguments, **changed}
            target = changed.target if isinstance(changed, Call) else target
        args, kwargs = (node.args, dict(node.kwargs)) if arguments is None else rebind(target, arguments)
        args, kwargs = fx.map_arg((args, kwargs), lambda source: source if source not in env else read(source))
        return self.call(target, args, kwargs, prefix + node.name, {**node.meta, "type": types[node]})

    def _view(self, source: fx.Node, axes: Axes, widths: Widths, views: dict[fx.Node, fx.Node], prefix: str) -> fx.Node:
        """The part of a tensor that is kept, as a chain of selections; the tensor itself if nothing is cut."""
        if source in views:
            return views[source]
        node = self.shared[source]
        kind = source.meta["type"]
        for dim, expr in enumerate(axes.dims[source]):
            if not axes.narrowed(expr, widths):
                continue
            kept = axes.indices(expr, widths)
            kind = kind.with_shape((*kind.shape[:dim], Size(len(kept)), *kind.shape[dim + 1 :]))
            meta = {"type": kind, "origin": source.meta["origin"], "part": True}
            name = f"{prefix}{source.name}_part{dim}"
            if np.array_equal(kept, np.arange(len(kept))):
                node = self.call(aten.slice.Tensor, (node, dim, 0, len(kept)), {}, name, meta)
            else:
                index = self.constant(kept, source)
                node = self.call(aten.index_select.default, (node, dim, index), {}, name, meta)
        views[source] = node
        return node

    def constant(self, values: npt.NDArray[np.int64], like: fx.Node) -> fx.Node:
        """An index table; equal tables are one constant."""
        key = values.tobytes()
        name = self._constants.setdefault(key, f"anytime.constants.index_{len(self._constants)}")
        device = next((t.device for t in self.tensors.values()), torch.device("cpu"))
        return self.attribute(name, torch.from_numpy(values.copy()).to(device), like, transient=True)

    def _scaler(
        self, user: fx.Node, types: Mapping[fx.Node, Any], prefix: str, env: Mapping[fx.Node, fx.Node]
    ) -> Callable[[Any, Size, Size], Any]:
        def scale(value: Any, old: Size, new: Size) -> Any:
            if not isinstance(value, fx.Node):
                return new.coefficient
            now = types[value]
            if now == new:
                return value
            node = env[value]
            steps = (
                (operator.mul, new.coefficient, now * Size(new.coefficient)),
                (operator.floordiv, now.coefficient, new),
            )
            for target, factor, size in steps:
                if factor != 1:
                    meta = {"type": size, "origin": user.meta["origin"]}
                    node = self.call(target, (node, factor), {}, f"{prefix}{value.name}_{target.__name__}", meta)
            return node

        return scale


def _type_at(node: fx.Node, axes: Axes, widths: Widths) -> Any:
    kind, dims = node.meta["type"], axes.dims.get(node, ())
    if isinstance(kind, TensorType):
        return axes.shape(dims, kind, widths)
    if isinstance(kind, tuple):
        return tuple(
            axes.shape(d, k, widths) if isinstance(k, TensorType) else k for d, k in zip(dims, kind, strict=True)
        )
    return kind


def _refresh_sizes(program: Program, types: dict[fx.Node, Any]) -> None:
    """Sizes read off narrowed tensors are narrowed; arithmetic on constants is not."""
    for node in program.graph.nodes:
        if not isinstance(node.meta.get("type"), Size):
            continue
        if node.target is aten.sym_size.int:
            types[node] = types[node.args[0]].shape[node.args[1]]
        elif node.target is operator.mul:
            factors = [types[arg] if isinstance(arg, fx.Node) else Size(int(arg)) for arg in node.args]
            types[node] = factors[0] * factors[1]
