"""Heads for labels of several granularities (Lee and Shin 2018, Eq. 2), whatever the scheme.

Before a scheme, `add_heads`:

1. what makes the classes of a prediction, the last layer with parameters and all that follows it, is copied once for
   each coarser granularity, the axis of classes at its size, with parameters of its own that are drawn as those of the
   backbone's layer are;
2. the predictions of all granularities are concatenated, so that schemes see a network with one prediction; heads that
   they make private to a level, replicate or fuse are so for every granularity.

Behind it, `part_heads` takes the predictions of every level apart again: the selection of a granularity moves up
through averages over leaves and whatever else does not mix classes, to the concatenation, which vanishes.

Refused: predictions without an axis of classes that a layer makes, or of another size than the taxonomy has.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.factors import Factor, leaves, resolve
from anytimeify.ir import Captured, Program, Rewritten, Size, TensorType
from anytimeify.passes.narrow import Builder
from anytimeify.passes.project import ancestors
from anytimeify.passes.resized import resized
from anytimeify.schema import bound
from anytimeify.taxonomy import Taxonomy

__all__ = ["CLASSES", "add_heads", "coarse_heads", "heads_of_output", "part_heads"]

aten = torch.ops.aten
CLASSES = 1  # the dimension of a prediction that enumerates classes
_PREFIX = "anytime.taxonomy."


def add_heads(captured: Captured, axes: Axes, taxonomy: Taxonomy) -> Captured:
    """The backbone with a head for every granularity, its predictions concatenated along the classes."""
    program = captured.program
    builder = Builder.copying(program)
    made: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensors of coarse heads: what each is drawn as, and its shape
    fresh = captured.fresh() if captured.fresh is not None else {}
    outputs = []
    for prediction in program.outputs:
        factor = _classes(program, axes, prediction, taxonomy)
        region = _region(program, axes, prediction, factor)
        parts = [builder.shared[prediction]]
        for name, size in zip(taxonomy.granularities[1:], taxonomy.sizes[1:], strict=True):
            parts.append(_head(builder, program, axes, prediction, factor, region, name, size, fresh, made))
        kind = prediction.meta["type"]
        shape = (*kind.shape[:CLASSES], Size(sum(taxonomy.sizes)), *kind.shape[CLASSES + 1 :])
        prefixes = ("", *(f"{_PREFIX}{name}." for name in taxonomy.granularities[1:]))
        meta = {
            "type": kind.with_shape(shape),
            "origin": prediction.meta["origin"],
            "granularities": tuple(zip(prefixes, taxonomy.sizes, strict=True)),
        }
        outputs.append(builder.call(aten.cat.default, (parts, CLASSES), {}, "granularities", meta))
    return replace(
        captured,
        program=builder.build(outputs, program.graph.output_node()),
        fresh=_fresh(captured.fresh, program.tensors, made),
        reference=None,
    )


def coarse_heads(program: Program) -> set[fx.Node]:
    """The nodes that `add_heads` made and that read tensors: what every level should have for itself."""
    return {node for node in program.graph.nodes if "granularity" in node.meta and _reads_tensors(node)}


def heads_of_output(prediction: fx.Node) -> tuple[tuple[str, int], ...]:
    """What each granularity of a prediction prefixes its tensors with, and its number of classes."""
    parts: tuple[tuple[str, int], ...] = prediction.meta.get("granularities", ())
    return parts or (("", prediction.meta["type"].shape[CLASSES].coefficient),)


def _reads_tensors(node: fx.Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _fresh(
    draw: Callable[[], Mapping[str, Tensor]] | None,
    tensors: Mapping[str, Tensor],
    made: Mapping[str, tuple[str, tuple[int, ...]]],
) -> Callable[[], Mapping[str, Tensor]] | None:
    if draw is None:
        return None

    def fresh() -> Mapping[str, Tensor]:
        drawn = dict(draw())
        own = {name: resized(drawn.get(source, tensors[source]), shape) for name, (source, shape) in made.items()}
        return {**drawn, **own}

    return fresh


def _classes(program: Program, axes: Axes, prediction: fx.Node, taxonomy: Taxonomy) -> Factor:
    """The axis of classes of a prediction."""
    kind, place = prediction.meta["type"], f"the prediction, {prediction.name} ({prediction.meta['origin']}),"
    if len(kind.shape) < 2 or not kind.shape[CLASSES].static:
        raise SchemeError(
            f"taxonomy: {place} has the shape [{', '.join(map(str, kind.shape))}]; expected (samples, classes, ...)"
        )
    classes = kind.shape[CLASSES].coefficient
    if classes != taxonomy.sizes[0]:
        raise SchemeError(
            f"taxonomy: {place} has {classes} classes, and the finest granularity, {taxonomy.granularities[0]}, has "
            f"{taxonomy.sizes[0]}"
        )
    if not kind.dtype.is_floating_point:
        raise SchemeError(f"taxonomy: {place} is of type {kind.dtype}: expected scores of classes")
    expr = resolve(axes.dims[prediction][CLASSES])
    if not isinstance(expr, Factor):
        raise SchemeError(f"taxonomy: the classes of {place} are made of several axes, which no coarser head can follow")
    return expr


def _has(axes: Axes, node: fx.Node, factor: Factor) -> bool:
    return any(factor in leaves(resolve(expr)) for expr in _flat(axes.dims.get(node, ())))


def _flat(dims: Any) -> list[Any]:
    return [expr for one in dims for expr in (_flat(one) if isinstance(one, tuple) else [one])]


def _region(program: Program, axes: Axes, prediction: fx.Node, factor: Factor) -> set[fx.Node]:
    """The calls from the layers that make the classes to the prediction."""
    found: set[fx.Node] = set()
    waiting = [prediction]
    parameters = False
    while waiting:
        node = waiting.pop()
        if node in found or not _has(axes, node, factor):
            continue
        if node.op == "placeholder":
            raise SchemeError(f"taxonomy: the input {node.name} has an axis of the classes, so no coarser head can be made")
        if node.op == "get_attr":
            _check_tensor(program, node)
            parameters = parameters or program.is_parameter(str(node.target))
            continue
        if node in axes.unknown or node not in axes.memo:
            raise SchemeError(f"taxonomy: no coarser head can be made: {_blocked(node)}")
        found.add(node)
        waiting.extend(node.all_input_nodes)
    if not parameters:
        ends = [node for node in found if not any(source in found for source in node.all_input_nodes)]
        raise SchemeError(
            f"taxonomy: no layer with parameters is known to make the classes of the prediction: {_blocked(ends[0])}"
            if ends
            else "taxonomy: no layer makes the classes of the prediction"
        )
    return found


def _blocked(node: fx.Node) -> str:
    return f"{node.name} ({node.target}, {node.meta['origin']}) has no rule that says what becomes of its axes"


def _check_tensor(program: Program, node: fx.Node) -> None:
    tensor = program.tensors[str(node.target)]
    if program.is_parameter(str(node.target)):
        return
    statistics = any(node in (bound(user).get(name) for name in ("running_mean", "running_var")) for user in node.users)
    if not statistics and not bool((tensor == tensor.flatten()[0]).all()):
        raise SchemeError(
            f"taxonomy: the buffer {node.target} has an entry for each of the finest classes, and nothing says what the "
            "coarser ones have"
        )


def _head(
    builder: Builder,
    program: Program,
    axes: Axes,
    prediction: fx.Node,
    factor: Factor,
    region: set[fx.Node],
    name: str,
    size: int,
    fresh: Mapping[str, Tensor],
    made: dict[str, tuple[str, tuple[int, ...]]],
) -> fx.Node:
    """Appends the head of one coarser granularity, and gives its prediction."""
    own: dict[fx.Node, str] = {}
    ties: dict[int, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        source = str(node.target)
        if not _has(axes, node, factor) or region.isdisjoint(node.users):
            continue
        own[node] = f"{_PREFIX}{name}.{source}"
        tensor = program.tensors[source]
        if id(tensor) not in ties:
            shape = tuple(s.coefficient for s in axes.shape(axes.dims[node], node.meta["type"], {factor: size}).shape)
            value = resized(fresh.get(source, tensor).detach().to(tensor), shape)
            ties[id(tensor)] = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
        builder.tensors[own[node]] = ties[id(tensor)]
        made[own[node]] = (source, tuple(ties[id(tensor)].shape))

    def private(user: fx.Node, source: fx.Node, reached: object) -> str | None:
        return own.get(source)

    env = builder.clone_region(program, axes, {factor: size}, region, {}, prefix=f"{name}_", private=private)
    for node in region:
        env[node].meta["granularity"] = name
    return env[prediction]


# Behind the scheme.


def part_heads(rewritten: Rewritten, taxonomy: Taxonomy, backbone: Program) -> Rewritten:
    """The predictions of every granularity apart, those that a level does not have left out."""
    program = rewritten.program
    builder = Builder.copying(program)
    whole = [builder.shared[node] for node in program.outputs]
    parts = _Parts(builder, taxonomy)
    chosen = _chosen(rewritten, taxonomy)
    count = len(whole)
    outputs = [parts.of(node, CLASSES, chosen[place][0]) for place, node in enumerate(whole)]
    heads: list[tuple[tuple[int, int], ...]] = []
    for place, node in enumerate(whole):
        own = [(chosen[place][0], place)]
        for granularity in chosen[place][1:]:
            own.append((granularity, len(outputs)))
            outputs.append(parts.of(node, CLASSES, granularity))
        heads.append(tuple(own))
    served = tuple(_served(taxonomy, level, chosen) for level in range(len(rewritten.level_names)))
    steps = tuple(dict(heads[place])[served[level]] for level, place in enumerate(rewritten.steps))
    result = builder.build(outputs, program.graph.output_node())
    return replace(
        rewritten,
        program=_with_names(_without_unread(result), len(rewritten.level_names), heads),
        heads=tuple(heads[:count]),
        served=served,
        steps=steps,
        stacks=frozenset(name for name in rewritten.stacks if name in backbone.tensors),
    )


def _chosen(rewritten: Rewritten, taxonomy: Taxonomy) -> list[list[int]]:
    """The granularities of every output, finest first."""
    levels = len(rewritten.level_names)
    everything = list(range(len(taxonomy.sizes)))
    if taxonomy.heads is not None and len(taxonomy.heads) != levels:
        raise SchemeError(f"taxonomy: heads is for {len(taxonomy.heads)} levels, and the model has {levels}")
    if taxonomy.serve is not None and len(taxonomy.serve) != levels:
        raise SchemeError(f"taxonomy: serve is for {len(taxonomy.serve)} levels, and the model has {levels}")
    own = [
        everything if taxonomy.heads is None else [taxonomy.index(name) for name in taxonomy.heads[level]]
        for level in range(levels)
    ]
    for level in rewritten.backbones or (rewritten.full % levels,):
        if own[level][0] != 0:
            raise SchemeError(
                f"taxonomy: heads: level {level} ({rewritten.level_names[level]}) equals the backbone, which predicts "
                f"{taxonomy.granularities[0]}"
            )
    any_level = [place for place in everything if any(place in one for one in own)]
    result = [any_level] * len(rewritten.program.outputs)
    result[:levels] = own
    for places in (rewritten.alone, rewritten.steps):
        for level, place in enumerate(places):
            result[place] = own[level]
    return result


def _served(taxonomy: Taxonomy, level: int, chosen: Sequence[Sequence[int]]) -> int:
    return chosen[level][0] if taxonomy.serve is None else taxonomy.index(taxonomy.serve[level])


@dataclass
class _Parts:
    """Selections of one granularity, appended to a graph."""

    builder: Builder
    taxonomy: Taxonomy

    def __post_init__(self) -> None:
        self.known: dict[tuple[fx.Node, int, int], fx.Node] = {}
        ends = list(itertools.accumulate(self.taxonomy.sizes))
        self.bounds = list(zip([0, *ends], ends, strict=False))

    def of(self, node: fx.Node, dim: int, granularity: int) -> fx.Node:
        """The part of a value whose dimension `dim` holds the classes of all granularities."""
        key = (node, dim, granularity)
        if key not in self.known:
            self.known[key] = self.moved(node, dim, granularity) or self.cut(node, dim, granularity)
        return self.known[key]

    def cut(self, node: fx.Node, dim: int, granularity: int) -> fx.Node:
        start, end = self.bounds[granularity]
        return self.emit(node, aten.slice.Tensor, (node, dim, start, end), dim, granularity)

    def moved(self, node: fx.Node, dim: int, granularity: int) -> fx.Node | None:
        """The operation on parts of what it reads, where it does not mix classes; None where that is not known."""
        given = bound(node) if node.op == "call_function" and hasattr(node.target, "_schema") else {}
        rank = len(node.meta["type"].shape) if isinstance(node.meta.get("type"), TensorType) else 0
        target: Any = node.target

        def again(sources: Mapping[fx.Node, int]) -> fx.Node:
            own = {source: self.of(source, place, granularity) for source, place in sources.items()}
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: own.get(source, source))
            return self.emit(node, target, args, dim, granularity, kwargs)

        if target is aten.cat.default:
            tensors, at = list(given["tensors"]), given["dim"] % rank
            if at != dim:
                return again(dict.fromkeys(tensors, dim))
            sizes = [one.meta["type"].shape[dim] for one in tensors]
            return tensors[granularity] if sizes == list(map(Size, self.taxonomy.sizes)) else None
        if target is aten.stack.default:
            at = given["dim"] % rank
            return None if at == dim else again(dict.fromkeys(given["tensors"], dim - (at < dim)))
        if target is operator.getitem:
            source = node.all_input_nodes[0]
            if source.target not in (aten.chunk.default, aten.unbind.int):
                return None
            inner = bound(source)
            unbound = source.target is aten.unbind.int
            at = inner["dim"] % (rank + unbound)
            if at == dim and not unbound:
                return None
            return self.item(node, source, inner["self"], dim + (unbound and at <= dim), dim, granularity)
        if target is aten.select.int:
            at = given["dim"] % (rank + 1)
            return again({given["self"]: dim + (at <= dim)})
        if target is aten.mean.dim:
            source = given["self"]
            at = sorted(one % len(source.meta["type"].shape) for one in given["dim"] or ())
            if given["keepdim"] or not at:
                return None
            kept = [one for one in range(len(source.meta["type"].shape)) if one not in at]
            return again({source: kept[dim]})
        if target is aten.slice.Tensor:
            return None if given["dim"] % rank == dim else again({given["self"]: dim})
        if target is aten.unflatten.int:
            at, more = given["dim"] % (rank - len(given["sizes"]) + 1), len(given["sizes"]) - 1
            if at <= dim <= at + more:
                return None
            return again({given["self"]: dim - more * (dim > at)})
        if target is aten.flatten.using_ints:
            source = given["self"]
            wide = len(source.meta["type"].shape)
            first, last = given["start_dim"] % wide, given["end_dim"] % wide
            return None if dim == first else again({source: dim + (last - first) * (dim > first)})
        if target is aten.transpose.int:
            one, other = given["dim0"] % rank, given["dim1"] % rank
            return again({given["self"]: {one: other, other: one}.get(dim, dim)})
        return None

    def item(
        self, node: fx.Node, source: fx.Node, whole: fx.Node, place: int, dim: int, granularity: int
    ) -> fx.Node:
        """One of several results."""
        part = self.of(whole, place, granularity)
        key = (source, place, granularity)
        if key not in self.known:
            kinds = tuple(self.kind(kind, dim, granularity) for kind in source.meta["type"])
            args, kwargs = fx.map_arg((source.args, dict(source.kwargs)), lambda one: part if one is whole else one)
            self.known[key] = self.builder.call(
                source.target, args, kwargs, self.name(source, granularity), {**source.meta, "type": kinds}
            )
        return self.emit(node, operator.getitem, (self.known[key], node.args[1]), dim, granularity)

    def kind(self, kind: TensorType, dim: int, granularity: int) -> TensorType:
        size = Size(self.taxonomy.sizes[granularity])
        return kind.with_shape((*kind.shape[:dim], size, *kind.shape[dim + 1 :]))

    def name(self, node: fx.Node, granularity: int) -> str:
        return f"{node.name}_{self.taxonomy.granularities[granularity]}"

    def emit(
        self,
        like: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        dim: int,
        granularity: int,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        meta = {"type": self.kind(like.meta["type"], dim, granularity), "origin": like.meta["origin"]}
        return self.builder.call(target, args, kwargs or {}, self.name(like, granularity), meta)


_COARSE = re.compile(r"(anytime\.\d+\.)?anytime\.taxonomy\.")


def _without_unread(program: Program) -> Program:
    """Without the tensors of heads that no level has."""
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    tensors = {name: t for name, t in program.tensors.items() if name in read or not _COARSE.match(name)}
    return replace(program, tensors=tensors, transient=program.transient & tensors.keys())


def _with_names(program: Program, levels: int, heads: Sequence[Sequence[tuple[int, int]]]) -> Program:
    """Tensors of heads under `anytime.<level>.taxonomy` if one level alone has them, else under `anytime.taxonomy`.

    The graph is our own: its names are changed in place."""
    readers: dict[str, set[int]] = {}
    for place, own in enumerate(heads):
        level = place if place < levels else -1
        for node in ancestors([program.outputs[one] for _, one in own]):
            if node.op == "get_attr":
                readers.setdefault(str(node.target), set()).add(level)
    names: dict[str, str] = {}
    for name in program.tensors:
        found = _COARSE.match(name)
        if found:
            one = readers.get(name, set()) - {-1}
            scope = found[1] or (f"anytime.{one.pop()}." if len(one) == 1 else "anytime.")
            names[name] = f"{scope}taxonomy.{name[found.end() :]}"
    for node in program.graph.find_nodes(op="get_attr"):
        node.target = names.get(str(node.target), node.target)
    tensors = {names.get(name, name): tensor for name, tensor in program.tensors.items()}
    return replace(program, tensors=tensors)
