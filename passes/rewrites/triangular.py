"""Triangular connectivity: chunk k of every axis reads chunks 1 to k, so one pass computes all levels (IS-ResNeXt).

    h = linear(x, w)        ->      h = linear(x, mul(w, mask))
    y = linear(h, head)             low = linear(slice(h, 1, 0, 2), low_head)
                                    y = linear(h, head)

`Form` writes the graphs of a block-triangular dependence (`Nest`): all levels in one pass, one level alone, or level by
level, each computing only its own chunks. All forms read the same tensors and give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Program, Size, TensorType, meta_of, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.rewritten import LevelData, Output, Rewritten
from anytimeify.passes.rewrites.block_triangular import use_blocks
from anytimeify.passes.rewrites.block_triangular_dependence import Kind, Nest, Places
from anytimeify.passes.rewrites.narrow import Builder, Clone, Private
from anytimeify.passes.rewrites.operands import contraction_of
from anytimeify.passes.rewrites.project import project
from anytimeify.rules import Layers
from anytimeify.rules.contractions import Contraction
from anytimeify.rules.factors import leaves
from anytimeify.rules.op import name_of

__all__ = ["Form", "triangular"]

SLACK = 1.05  # how much more than the backbone one pass for all levels may cost


def triangular(
    captured: Captured,
    axes: Axes,
    widths: Sequence[Widths],
    levels: tuple[LevelData, ...],
    private: Callable[[int, Builder], Private],
    stand_apart: Set[fx.Node] = frozenset(),
) -> Rewritten:
    """All levels in one pass; each of them alone; and a stream.

    `private(level, builder)` gives the tensors that a lower level has for itself, where values are separate; the nodes
    in `stand_apart` are where they can be. Raises `SchemeError` where so much is separate that one pass would cost more
    than the backbone.
    """
    program = captured.program
    nest, builder, last = Nest(program, axes, widths, stand_apart), Builder.copying(program), len(widths) - 1

    def own(level: int) -> Private | None:
        return private(level, builder) if level < last else None

    joint = Form(nest, builder, last, prefix=names.JOINT, private=own)
    outputs = {Output("level", level): joint.value(program.outputs[0], level) for level in range(last + 1)}
    below = {joint.value(head, level).name for head in Layers(program).last for level in range(last)}
    _refuse_cost(captured, nest, builder.build(list(outputs.values()), program.graph.output_node()), below)
    for level in range(last + 1):
        alone = Form(nest, builder, level, prefix=names.level_prefix(level), private=own)
        outputs[Output("alone", level)] = alone.value(program.outputs[0], level)
    steps = Form(nest, builder, last, prefix=names.STEP, private=own, stepwise=True)
    for level in range(last + 1):
        outputs[Output("step", level)] = steps.value(program.outputs[0], level)
    built, called = builder.build_named(outputs, program.graph.output_node())
    full = project(built, [called.index(Output("alone", last))])
    return Rewritten(
        use_blocks(built, range(last + 1)),
        called,
        levels,
        exact=False,
        resumable=True,
        notes=(_note(captured, full),),
    )


def _refuse_cost(captured: Captured, nest: Nest, joint: Program, heads: Set[str]) -> None:
    """`heads`: those of lower levels, which every level has whatever it costs."""
    total = sum(macs for node, macs in _macs(captured, joint).items() if node.name not in heads)
    share = total / max(1, sum(_macs(captured, captured.program).values()))
    if share <= SLACK:
        return
    first = next(node for node in nest.program.graph.nodes if node in nest.apart and nest.axes.dims[node])
    pins = (leaf.pin for expr in nest.axes.dims[first] for leaf in leaves(expr) if leaf.pin is not None)
    reason = next((f" ({pin})" for pin in pins if pin.kind in ("fixed", "output")), "")
    raise SchemeError(
        f"connectivity='triangular': {name_of(first)} ({origin_of(first)}) makes of all channels something whose "
        f"own axes keep their size{reason}, so that it and what lies behind would be computed for every level. That "
        f"costs {share:.2f} times the backbone; use connectivity='dense', or name other layers in where"
    )


def _macs(captured: Captured, program: Program) -> Mapping[fx.Node, int]:
    batch_size, symbols = sizes(captured)
    return macs_by_node(program, captured.batch, batch_size, symbols)


def _note(captured: Captured, alone: Program) -> str:
    full, whole = (sum(_macs(captured, program).values()) for program in (alone, captured.program))
    return (
        "triangular connectivity: weights by which a channel would read those of later levels are masked, so that the "
        f"full level has {100 * full / max(1, whole):.1f} % of the backbone's multiply-accumulates and is to be trained"
    )


class Form:
    """The values up to the level `top`, appended to a builder.

    `stepwise=False`: whole values in one pass; a lower level's value is a part of them. `stepwise=True`: every level
    computes what it adds. `private` gives the tensors that a level has for itself, where values are separate.
    """

    def __init__(
        self,
        nest: Nest,
        builder: Builder,
        top: int,
        *,
        prefix: str,
        private: Callable[[int], Private | None],
        stepwise: bool = False,
    ) -> None:
        self.nest, self.builder, self.top, self.prefix, self.stepwise = nest, builder, top, prefix, stepwise
        self.levels = [_AtLevel(self, level, private(level)) for level in range(top + 1)]
        self.chunks = [_Chunk(self, level) for level in range(top + 1)] if stepwise else []
        self.values: dict[tuple[fx.Node, int], fx.Node] = {}
        self.added: dict[tuple[fx.Node, int], fx.Node | None] = {}
        self.weights: dict[tuple[Any, ...], fx.Node] = {}  # those with masks
        for level in range(top + 1) if stepwise else (top,):  # in order, so that nothing is asked for too deeply
            for node in nest.program.graph.nodes:
                if node.op == "call_function":
                    self._visit(node, level)

    def _visit(self, node: fx.Node, level: int) -> None:
        kind = self.nest.kinds[node]
        if kind is Kind.APART and not self.stepwise:
            for lower in range(level + 1):
                self.value(node, lower)
        elif kind.nested and self.stepwise and (_several(node) or self.nest.is_flat(node)):
            self.fresh(node, level)
        elif kind is not Kind.SAME:
            self.value(node, level)

    def value(self, node: fx.Node, level: int) -> fx.Node:
        """The value of a node at a level."""
        if node.op == "get_attr":
            return self.levels[level].part(node)
        if self.nest.kinds[node] is Kind.SAME:
            return self.builder.shared[node]
        if (node, level) not in self.values:
            self.values[node, level] = self._value(node, level)
        return self.values[node, level]

    def _value(self, node: fx.Node, level: int) -> fx.Node:
        kind = self.nest.kinds[node]
        if kind is Kind.APART or _several(node):
            return self.levels[level].call(node)
        if level < self.top and not self.stepwise:
            return self._part(node, level)
        if kind is Kind.ASSEMBLED:
            return self._assembled(node, level)
        if level and self.stepwise and self.nest.is_flat(node):
            return self._grown(node, level)
        return self.levels[level].call(node)

    def _part(self, node: fx.Node, level: int) -> fx.Node:
        """The part of a whole value that a lower level keeps."""
        result = self.value(node, self.top)
        for dim in self.nest.narrowed_dims(node):
            expr = self.nest.axes.dims[node][dim]
            places = np.searchsorted(self.nest.kept(expr, self.top), self.nest.kept(expr, level))
            result = self.pick(result, node, dim, places, f"at{level}")
        return result

    def _grown(self, node: fx.Node, level: int) -> fx.Node:
        """The value of the level before with what this level adds."""
        fresh = self.fresh(node, level)
        if (node, level) in self.values:  # the only way to what is new was to compute everything
            return self.values[node, level]
        before = self.value(node, level - 1)
        return before if fresh is None else self._joined(node, [before, fresh], level)

    def _assembled(self, node: fx.Node, level: int) -> fx.Node:
        if not self.nest.is_flat(node):
            lower = range(level, level + 1) if self.stepwise and level else range(1, level + 1)
            result = self.value(node, level - 1) if self.stepwise and level else self.levels[0].call(node)
            for one in lower:
                result = self._embedded(node, result, self.levels[one].call(node), one)
            return result
        if self.stepwise and level:
            return self._grown(node, level)
        pieces = [self.fresh(node, lower) for lower in range(level + 1)]
        return self._joined(node, [piece for piece in pieces if piece is not None], level, whole=True)

    def _joined(self, node: fx.Node, pieces: list[fx.Node], level: int, *, whole: bool = False) -> fx.Node:
        """The value at a level, of what every level up to it adds, or of the value of the level before and what this
        one adds."""
        if len(pieces) == 1:
            return pieces[0]
        (dim,) = self.nest.narrowed_dims(node)
        meta = {**node.meta, "type": self.levels[level].types[node]}
        name = f"{self.prefix}{node.name}_to{level}"
        result = self.builder.call(torch.ops.aten.cat.default, (pieces, dim), {}, name, meta)
        expr = self.nest.axes.dims[node][dim]
        chunks = self.nest.chunks(expr)[self.nest.kept(expr, level)]
        order = np.argsort(chunks if whole else chunks == level, kind="stable")  # in which entries have been joined
        return self.pick(result, node, dim, np.argsort(order), "ordered")

    def _embedded(self, node: fx.Node, small: fx.Node, large: fx.Node, level: int) -> fx.Node:
        """The value at a level, those of its elements that the level before has taken from there."""
        dims = self.nest.narrowed_dims(node)
        places, inside = [], [large]
        for dim in dims:
            expr = self.nest.axes.dims[node][dim]
            places.append(np.searchsorted(self.nest.kept(expr, level), self.nest.kept(expr, level - 1)))
            inside.append(self.pick(inside[-1], node, dim, places[-1], f"inside{level}"))
        result = small
        for dim, place, base in reversed(list(zip(dims, places, inside[:-1], strict=True))):
            arguments = (base, dim, self.builder.constant(place, node), result)
            name = f"{self.prefix}{node.name}_with{level}"
            result = self.builder.call(torch.ops.aten.index_copy.default, arguments, {}, name, dict(base.meta))
        return result

    # What a level adds.

    def fresh(self, node: fx.Node, level: int) -> fx.Node | None:
        """What a level adds to a value along its one narrowed dimension; None if nothing, or if it cannot be told (of
        several results at once)."""
        if (node, level) not in self.added:
            self.added[node, level] = self._fresh(node, level)
        return self.added[node, level]

    def _fresh(self, node: fx.Node, level: int) -> fx.Node | None:
        assembled = self.nest.kinds[node] is Kind.ASSEMBLED
        if level == 0:
            return self.levels[0].call(node) if assembled else self.value(node, 0)
        if not _several(node) and not len(self._new(node, level)):
            return None
        if self.nest.kinds[node] is Kind.WHOLE and self._comes_in_chunks(node, level):
            return self.chunks[level].call(node)
        if _several(node):
            return None
        if self.nest.has_rows(node):
            return self._rows(node, level)
        whole = self.levels[level].call(node)
        if not assembled:
            self.values[node, level] = whole
        (dim,) = self.nest.narrowed_dims(node)
        return self.pick(whole, node, dim, self._new(node, level), f"new{level}")

    def _new(self, node: fx.Node, level: int) -> Places:
        """Where, in the value at a level, that is which the level adds."""
        (dim,) = self.nest.narrowed_dims(node)
        return self.nest.new(self.nest.axes.dims[node][dim], level)

    def _comes_in_chunks(self, node: fx.Node, level: int) -> bool:
        """Whether a level's chunk of a value can be computed from its chunks of the operands."""
        for one in (node, *node.all_input_nodes):
            if one.op == "call_function" and self.nest.kinds[one] is Kind.APART:
                return False
            for dims in self.nest.results(one):
                narrowed = [expr for expr in dims if self.nest.is_narrowed(expr)]
                if len(narrowed) > 1 or not all(self.nest.is_cut(expr, level) for expr in narrowed):
                    return False
            if one is not node and _several(one) and self.fresh(one, level) is None:
                return False
        return True

    def _rows(self, node: fx.Node, level: int) -> fx.Node:
        """A layer called with those rows of its weights that a level adds, on all that the level reads."""
        nest, at, layer = self.nest, self.levels[level], self.nest.layers[node]
        types, instead = dict(at.types), {}
        for source in node.all_input_nodes:
            if source.op == "call_function" and not nest.kinds[source].nested:
                continue
            for dim in nest.narrowed_dims(source):
                expr = nest.axes.dims[source][dim]
                if dim not in layer.dims if source is layer.weight else source in nest.parameters:
                    value, part = at.unmasked(node, source), source.op == "get_attr"
                    instead[source] = self.pick(value, source, dim, nest.new(expr, level), f"new{level}", part=part)
                    types[source] = type_of(instead[source])
        instead.setdefault(layer.weight, at.unmasked(node, layer.weight))
        (dim,) = nest.narrowed_dims(node)
        types[node] = _with_size(at.types[node], dim, len(self._new(node, level)))
        return at.call(node, types=types, instead=instead)

    def masked(self, node: fx.Node, level: int, value: fx.Node) -> fx.Node:
        """The weights of a masked layer at a level, `value` being those without the mask. They say what is left of them
        where nothing but that is multiplied: where they have blocks."""
        keep = self.nest.mask(node, level)
        if keep.all():
            return value
        mask, blocks = self.builder.mask(keep, type_of(value).dtype, node), self.nest.blocks(node, level)
        key = value, mask, _way(contraction_of(node, self.nest.layers[node].weight))
        if key in self.weights:  # a layer that is called twice
            return self.weights[key]
        meta = {**value.meta}
        meta.pop("part", None)
        if blocks:
            shares = type_of(value).size.coefficient // keep.size
            meta |= {"kept": int(keep.sum()) * shares, "blocks": blocks}
        name = f"{self.prefix}{node.name}_weight"
        self.weights[key] = self.builder.call(torch.ops.aten.mul.Tensor, (value, mask), {}, name, meta)
        return self.weights[key]

    def pick(self, value: fx.Node, like: fx.Node, dim: int, places: Places, tag: str, *, part: bool = False) -> fx.Node:
        """Entries of a dimension of a value; the value itself if these are all, in their order."""
        kind = type_of(value)
        if np.array_equal(places, np.arange(kind.shape[dim].coefficient)):
            return value
        meta = meta_of(like, part=part)
        name = f"{self.prefix}{like.name}_{tag}"
        if len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
            bounds = (int(places[0]), int(places[0]) + len(places))
            return self.builder.call(torch.ops.aten.slice.Tensor, (value, dim, *bounds), {}, name, meta)
        index = self.builder.constant(places, like)
        return self.builder.call(torch.ops.aten.index_select.default, (value, dim, index), {}, name, meta)


class _AtLevel(Clone):
    """Calls at the widths of one level."""

    def __init__(self, form: Form, level: int, private: Private | None) -> None:
        nest = form.nest
        super().__init__(form.builder, nest.program, nest.axes, nest.widths[level], form.prefix, private)
        self.form, self.level = form, level
        self.reached = nest.apart

    def call(self, node: fx.Node, **changed: Any) -> fx.Node:
        if not changed and not self.widths:
            reads = {source: self.read(node, source) for source in node.all_input_nodes}
            if all(self.builder.shared[source] is value for source, value in reads.items()):
                return self.builder.shared[node]
        return super().call(node, **changed)

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        if source.graph is not self.program.graph:
            return source
        value, layer = self.unmasked(user, source), self.form.nest.layers.get(user)
        if layer is not None and layer.weight is source and self.form.nest.kinds[user] is Kind.MASKED:
            return self.form.masked(user, self.level, value)
        return value

    def unmasked(self, user: fx.Node, source: fx.Node) -> fx.Node:
        if source.op != "get_attr":
            return self.form.value(source, self.level)
        own = self.private(user, source, self.reached) if self.private and user in self.reached else None
        return self.part(source) if own is None else self.own(source, own)


class _Chunk(Clone):
    """Calls on the chunks that one level adds."""

    def __init__(self, form: Form, level: int) -> None:
        nest = form.nest
        super().__init__(form.builder, nest.program, nest.axes, nest.chunk_widths[level], form.prefix, None)
        self.form, self.level = form, level

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        nest = self.form.nest
        if source.graph is not self.program.graph:
            return source
        if source.op == "call_function" and nest.kinds[source].nested:
            fresh = self.form.fresh(source, self.level)
            assert fresh is not None
            return fresh
        value = self.builder.shared[source]
        if source.op == "get_attr":
            for dim in nest.narrowed_dims(source):
                places = np.flatnonzero(nest.chunks(nest.axes.dims[source][dim]) == self.level)
                value = self.form.pick(value, source, dim, places, "chunk", part=True)
        return value


def _way(contraction: Contraction | None) -> Any:
    """How a layer reads its weight, but for what it reads besides."""
    return contraction and (
        contraction.rows,
        contraction.columns,
        contraction.read,
        contraction.given,
        contraction.groups,
    )


def _several(node: fx.Node) -> bool:
    return isinstance(type_of(node), tuple)


def _with_size(kind: TensorType, dim: int, size: int) -> TensorType:
    return kind.with_shape((*kind.shape[:dim], Size(size), *kind.shape[dim + 1 :]))
