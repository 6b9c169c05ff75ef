"""Triangular connectivity: chunk k of every axis reads chunks 1 to k, so one pass computes all levels (IS-ResNeXt).

    h = linear(x, w)        ->      h = linear(x, mul(w, mask))
    y = linear(h, head)             low = linear(slice(h, 1, 0, 2), low_head)
                                    y = linear(h, head)

`TriangularLevels` writes the graphs of a block-triangular dependence (`BlockTriangularDependence`): all levels in one
pass, one level alone, or level by level, each computing only its own chunks. All forms read the same tensors and give
the same results.
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
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Size, TensorType, meta_of, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.rewritten import LevelData, Output, Rewritten
from anytimeify.ir.schema import rebind
from anytimeify.passes.rewrites.block_triangular import use_blocks
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence, Kind, Places
from anytimeify.passes.rewrites.chunkwise import Chunkwise
from anytimeify.passes.rewrites.narrow import Clone, Private
from anytimeify.passes.rewrites.operands import contraction_of
from anytimeify.passes.rewrites.prefix_norms import prefix_norm
from anytimeify.passes.rewrites.project import project
from anytimeify.rules import Layers
from anytimeify.rules.contractions import Contraction
from anytimeify.rules.factors import leaves
from anytimeify.rules.op import name_of

__all__ = ["TriangularLevels", "triangular"]

SLACK = 1.05  # how much more than the backbone one pass for all levels may cost


def triangular(
    captured: Captured,
    axes: Axes,
    widths: Sequence[Widths],
    levels: tuple[LevelData, ...],
    private: Callable[[int, Builder], Private],
    stand_alone: Set[fx.Node] = frozenset(),
) -> Rewritten:
    """All levels in one pass; each of them alone; and a stream.

    `private(level, builder)` gives the tensors that a lower level has for itself, where values are separate; the nodes
    in `stand_apart` are where they can be. Raises `SchemeError` where so much is separate that one pass would cost more
    than the backbone.
    """
    program = captured.program
    dependence = BlockTriangularDependence(program, axes, widths, stand_alone)
    builder, last = Builder.copying(program), len(widths) - 1

    def own(level: int) -> Private | None:
        return private(level, builder) if level < last else None

    joint = TriangularLevels(dependence, builder, last, prefix=names.JOINT, private=own, together=True)
    outputs = {Output("level", level): joint.value(program.outputs[0], level) for level in range(last + 1)}
    below = {joint.value(head, level).name for head in Layers(program).last for level in range(last)}
    _refuse_cost(captured, dependence, builder.build(list(outputs.values()), program.graph.output_node()), below)
    for level in range(last + 1):
        alone = TriangularLevels(dependence, builder, level, prefix=names.level_prefix(level), private=own)
        outputs[Output("alone", level)] = alone.value(program.outputs[0], level)
    steps = TriangularLevels(dependence, builder, last, prefix=names.STEP, private=own, stepwise=True)
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


def _refuse_cost(captured: Captured, dependence: BlockTriangularDependence, joint: Program, heads: Set[str]) -> None:
    """`heads`: those of lower levels, which every level has whatever it costs."""
    total = sum(macs for node, macs in _macs(captured, joint).items() if node.name not in heads)
    share = total / max(1, sum(_macs(captured, captured.program).values()))
    if share <= SLACK:
        return
    separate = (node for node in dependence.program.graph.nodes if node in dependence.separate)
    first = next(node for node in separate if dependence.axes.dims[node])
    pins = (leaf.pin for expr in dependence.axes.dims[first] for leaf in leaves(expr) if leaf.pin is not None)
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


class TriangularLevels:
    """The values up to the level `top`, appended to a builder.

    `stepwise=False`: whole values in one pass; a lower level's value is a part of them. `stepwise=True`: every level
    computes what it adds. `private` gives the tensors that a level has for itself, where values are separate.
    `together=True`: norms of all levels are one operation, where there is one (`prefix_norms`), and every chunk is
    computed once where operations treat each channel for itself (`chunkwise`).
    """

    def __init__(
        self,
        dependence: BlockTriangularDependence,
        builder: Builder,
        top: int,
        *,
        prefix: str,
        private: Callable[[int], Private | None],
        stepwise: bool = False,
        together: bool = False,
    ) -> None:
        self.dependence, self.builder, self.top, self.prefix, self.stepwise = dependence, builder, top, prefix, stepwise
        self.chunkwise = Chunkwise(self) if together else None
        self.levels = [_AtLevel(self, level, private(level)) for level in range(top + 1)]
        self.chunks = [_Chunk(self, level) for level in range(top + 1)] if stepwise or together else []
        self.values: dict[tuple[fx.Node, int], fx.Node] = {}
        self.added: dict[tuple[fx.Node, int], fx.Node | None] = {}
        self.weights: dict[tuple[Any, ...], fx.Node] = {}  # those with masks
        for level in range(top + 1) if stepwise else (top,):  # in order, so that nothing is asked for too deeply
            for node in dependence.program.graph.nodes:
                if node.op == "call_function":
                    self._visit(node, level)

    def _visit(self, node: fx.Node, level: int) -> None:
        kind = self.dependence.kinds[node]
        if kind is Kind.SEPARATE and not self.stepwise:
            for lower in range(level + 1):
                self.value(node, lower)
        elif kind.nested and self.stepwise and (_several(node) or self.dependence.is_flat(node)):
            self.added_part(node, level)
        elif kind is not Kind.SAME:
            self.value(node, level)

    def value(self, node: fx.Node, level: int) -> fx.Node:
        """The value of a node at a level."""
        if node.op == "get_attr":
            return self.levels[level].part(node)
        if self.dependence.kinds[node] is Kind.SAME:
            return self.builder.shared[node]
        if (node, level) not in self.values:
            self.values[node, level] = self._value(node, level)
        return self.values[node, level]

    def _value(self, node: fx.Node, level: int) -> fx.Node:
        kind = self.dependence.kinds[node]
        if kind is Kind.SEPARATE or _several(node):
            joined = self.chunkwise.reduced(node, level) if self.chunkwise is not None else None
            return self.levels[level].call(node) if joined is None else joined
        if level < self.top and not self.stepwise:
            return self._part(node, level)
        if kind is Kind.ASSEMBLED:
            return self._assembled(node, level)
        if level and self.stepwise and self.dependence.is_flat(node):
            return self._grown(node, level)
        return self.levels[level].call(node)

    def _part(self, node: fx.Node, level: int) -> fx.Node:
        """The part of a whole value that a lower level keeps."""
        result = self.value(node, self.top)
        for dim in self.dependence.narrowed_dims(node):
            expr = self.dependence.axes.dims[node][dim]
            places = np.searchsorted(self.dependence.kept(expr, self.top), self.dependence.kept(expr, level))
            result = self.pick(result, node, dim, places, f"at{level}")
        return result

    def _grown(self, node: fx.Node, level: int) -> fx.Node:
        """The value of the level before with what this level adds."""
        added = self.added_part(node, level)
        if (node, level) in self.values:  # the only way to what is new was to compute everything
            return self.values[node, level]
        before = self.value(node, level - 1)
        return before if added is None else self._joined(node, [before, added], level)

    def _assembled(self, node: fx.Node, level: int) -> fx.Node:
        if self.chunkwise is not None:
            norm = prefix_norm(self.dependence, node, level)
            if norm is not None:
                return self.levels[level].as_one(node, norm.target, norm.arguments)
            value = self.chunkwise.assembled(node)
            if value is not None:
                return value
        if not self.dependence.is_flat(node):
            lower = range(level, level + 1) if self.stepwise and level else range(1, level + 1)
            result = self.value(node, level - 1) if self.stepwise and level else self.levels[0].call(node)
            for one in lower:
                result = self._embedded(node, result, self.levels[one].call(node), one)
            return result
        if self.stepwise and level:
            return self._grown(node, level)
        pieces = [self.added_part(node, lower) for lower in range(level + 1)]
        return self._joined(node, [piece for piece in pieces if piece is not None], level, whole=True)

    def _joined(self, node: fx.Node, pieces: list[fx.Node], level: int, *, whole: bool = False) -> fx.Node:
        """The value at a level, of what every level up to it adds, or of the value of the level before and what this
        one adds."""
        if len(pieces) == 1:
            return pieces[0]
        (dim,) = self.dependence.narrowed_dims(node)
        meta = {**node.meta, "type": self.levels[level].types[node]}
        name = f"{self.prefix}{node.name}_to{level}"
        result = self.builder.call(torch.ops.aten.cat.default, (pieces, dim), {}, name, meta)
        expr = self.dependence.axes.dims[node][dim]
        chunks = self.dependence.chunks(expr)[self.dependence.kept(expr, level)]
        order = np.argsort(chunks if whole else chunks == level, kind="stable")  # in which entries have been joined
        return self.pick(result, node, dim, np.argsort(order), "ordered")

    def _embedded(self, node: fx.Node, small: fx.Node, large: fx.Node, level: int) -> fx.Node:
        """The value at a level, those of its elements that the level before has taken from there."""
        dims = self.dependence.narrowed_dims(node)
        places, inside = [], [large]
        for dim in dims:
            expr = self.dependence.axes.dims[node][dim]
            places.append(np.searchsorted(self.dependence.kept(expr, level), self.dependence.kept(expr, level - 1)))
            inside.append(self.pick(inside[-1], node, dim, places[-1], f"inside{level}"))
        result = small
        for dim, place, base in reversed(list(zip(dims, places, inside[:-1], strict=True))):
            arguments = (base, dim, self.builder.constant(place, node), result)
            name = f"{self.prefix}{node.name}_with{level}"
            result = self.builder.call(torch.ops.aten.index_copy.default, arguments, {}, name, dict(base.meta))
        return result

    # What a level adds.

    def added_part(self, node: fx.Node, level: int) -> fx.Node | None:
        """What a level adds to a value along its one narrowed dimension; None if nothing, or if it cannot be told (of
        several results at once)."""
        if (node, level) not in self.added:
            self.added[node, level] = self._compute_added(node, level)
        return self.added[node, level]

    def _compute_added(self, node: fx.Node, level: int) -> fx.Node | None:
        assembled = self.dependence.kinds[node] is Kind.ASSEMBLED
        if level == 0:
            return self.levels[0].call(node) if assembled else self.value(node, 0)
        if not _several(node) and not len(self._new(node, level)):
            return None
        if self.dependence.kinds[node] is Kind.WHOLE and self._comes_in_chunks(node, level):
            return self.call_chunk(node, level)
        if _several(node):
            return None
        if self.dependence.has_rows(node):
            return self._rows(node, level)
        whole = self.levels[level].call(node)
        if not assembled:
            self.values[node, level] = whole
        (dim,) = self.dependence.narrowed_dims(node)
        return self.pick(whole, node, dim, self._new(node, level), f"new{level}")

    def chunk(self, node: fx.Node, level: int) -> fx.Node:
        """The chunk of a nested value that comes in chunks."""
        added = self.added_part(node, level) if self.chunkwise is None else self.chunkwise.of(node)[level]
        assert added is not None
        return added

    def call_chunk(self, node: fx.Node, level: int) -> fx.Node:
        """A call on the chunks that a level adds to what it reads."""
        return self.chunks[level].call(node)

    def _new(self, node: fx.Node, level: int) -> Places:
        """Where, in the value at a level, that is which the level adds."""
        (dim,) = self.dependence.narrowed_dims(node)
        return self.dependence.new(self.dependence.axes.dims[node][dim], level)

    def _comes_in_chunks(self, node: fx.Node, level: int) -> bool:
        """Whether a level's chunk of a value can be computed from its chunks of the operands."""
        for one in (node, *node.all_input_nodes):
            if one.op == "call_function" and self.dependence.kinds[one] is Kind.SEPARATE:
                return False
            for dims in self.dependence.results(one):
                narrowed = [expr for expr in dims if self.dependence.is_narrowed(expr)]
                if len(narrowed) > 1 or not all(self.dependence.is_cut(expr, level) for expr in narrowed):
                    return False
            if one is not node and _several(one) and self.added_part(one, level) is None:
                return False
        return True

    def _rows(self, node: fx.Node, level: int) -> fx.Node:
        """A layer called with those rows of its weights that a level adds, on all that the level reads."""
        dependence, at, layer = self.dependence, self.levels[level], self.dependence.layers[node]
        types, instead = dict(at.types), {}
        for source in node.all_input_nodes:
            if source.op == "call_function" and not dependence.kinds[source].nested:
                continue
            for dim in dependence.narrowed_dims(source):
                expr = dependence.axes.dims[source][dim]
                if dim not in layer.dims if source is layer.weight else source in dependence.parameters:
                    value, part = at.unmasked(node, source), source.op == "get_attr"
                    new = dependence.new(expr, level)
                    instead[source] = self.pick(value, source, dim, new, f"new{level}", part=part)
                    types[source] = type_of(instead[source])
        instead.setdefault(layer.weight, at.unmasked(node, layer.weight))
        (dim,) = dependence.narrowed_dims(node)
        types[node] = _with_size(at.types[node], dim, len(self._new(node, level)))
        return at.call(node, types=types, instead=instead)

    def masked(self, node: fx.Node, level: int, value: fx.Node) -> fx.Node:
        """The weights of a masked layer at a level, `value` being those without the mask. They say what is left of them
        where nothing but that is multiplied: where they have blocks."""
        kept = self.dependence.mask(node, level)
        if kept.is_whole:
            return value
        mask, blocks = self.builder.mask(kept.keep, type_of(value).dtype, node), self.dependence.blocks(node, level)
        key = value, mask, _way(contraction_of(node, self.dependence.layers[node].weight))
        if key in self.weights:  # a layer that is called twice
            return self.weights[key]
        meta = {**value.meta}
        meta.pop("part", None)
        if blocks:
            shares = type_of(value).size.coefficient // kept.keep.size
            meta |= {"mask_nonzeros": kept.count * shares, "blocks": blocks}
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

    def __init__(self, levels: TriangularLevels, level: int, private: Private | None) -> None:
        dependence = levels.dependence
        widths, types = dependence.widths[level], dependence.types[level]
        program, axes = dependence.program, dependence.axes
        super().__init__(levels.builder, program, axes, widths, levels.prefix, private, types=types)
        self.levels, self.level = levels, level
        self.reached = dependence.separate

    def call(self, node: fx.Node, **changed: Any) -> fx.Node:
        if not changed and not self.widths:
            reads = {source: self.read(node, source) for source in node.all_input_nodes}
            if all(self.builder.shared[source] is value for source, value in reads.items()):
                return self.builder.shared[node]
        return super().call(node, **changed)

    def as_one(self, node: fx.Node, target: Any, arguments: dict[str, Any]) -> fx.Node:
        """Another operation that gives the value of a node at this level."""
        args, kwargs = fx.map_arg(rebind(target, arguments), lambda source: self.read(node, source))
        return self.builder.call(target, args, kwargs, f"{self.prefix}{node.name}", meta_of(node))

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        if source.graph is not self.program.graph:
            return source
        value, layer = self.unmasked(user, source), self.levels.dependence.layers.get(user)
        if layer is not None and layer.weight is source and self.levels.dependence.kinds[user] is Kind.MASKED:
            return self.levels.masked(user, self.level, value)
        return value

    def unmasked(self, user: fx.Node, source: fx.Node) -> fx.Node:
        if source.op != "get_attr":
            return self.levels.value(source, self.level)
        own = self.private(user, source, self.reached) if self.private and user in self.reached else None
        return self.part(source) if own is None else self.own(source, own)


class _Chunk(Clone):
    """Calls on the chunks that one level adds."""

    def __init__(self, levels: TriangularLevels, level: int) -> None:
        dependence = levels.dependence
        widths, types = dependence.chunk_widths[level], dependence.chunk_types[level]
        program, axes = dependence.program, dependence.axes
        super().__init__(levels.builder, program, axes, widths, levels.prefix, None, types=types)
        self.levels, self.level = levels, level

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        dependence = self.levels.dependence
        if source.graph is not self.program.graph:
            return source
        if source.op == "call_function" and dependence.kinds[source].nested:
            return self.levels.chunk(source, self.level)
        if source.op == "call_function":
            return self.levels.value(source, self.level)
        value = self.builder.shared[source]
        if source.op == "get_attr":
            for dim in dependence.narrowed_dims(source):
                places = np.flatnonzero(dependence.chunks(dependence.axes.dims[source][dim]) == self.level)
                value = self.levels.pick(value, source, dim, places, "chunk", part=True)
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
