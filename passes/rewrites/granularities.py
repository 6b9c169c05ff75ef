"""`part_heads`: separates the predictions of a model with a taxonomy, after its scheme.

    y = cat([fine, coarse], 1)      ->      return fine, coarse
    return y

A scheme sees one prediction, in which the classes of all granularities are concatenated
(`anytimeify.passes.rewrites.taxonomy`). The selection of one granularity moves up through averages over leaves and all
other operations that do not mix classes, to the concatenation, which vanishes; where that is not possible, the
prediction is sliced. Tensors of granularities that no level predicts are left out, and heads are named after the level
that has them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, Size, names, result_of
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.classes import CLASSES
from anytimeify.rules import has_kind, traits
from anytimeify.taxonomy import Taxonomy

__all__ = ["part_heads"]

aten = torch.ops.aten


@rewrite("part heads")
def part_heads(rewritten: Rewritten, taxonomy: Taxonomy, backbone: Program) -> Rewritten:
    """The predictions of every granularity as separate outputs, without those that a level does not have."""
    program = rewritten.program
    builder = Builder.copying(program)
    parts = _Parts(builder, taxonomy)
    chosen = _chosen(rewritten, taxonomy)

    def part(output: Output, granularity: int) -> tuple[Output, fx.Node]:
        whole = builder.shared[rewritten.outputs[output]]
        return replace(output, granularity=granularity), parts.of(whole, CLASSES, granularity)

    outputs = dict(part(output, own[0]) for output, own in chosen.items())
    outputs.update(part(output, granularity) for output, own in chosen.items() for granularity in own[1:])
    result, called = builder.build_named(outputs, program.graph.output_node())
    levels = tuple(
        replace(level, served=_served(taxonomy, index, chosen)) for index, level in enumerate(rewritten.levels)
    )
    parted = replace(
        rewritten,
        program=_without_unread(result, program, backbone),
        names=called,
        levels=levels,
        stacked_parameters=frozenset(name for name in rewritten.stacked_parameters if name in backbone.tensors),
    )
    return replace(parted, program=_with_names(parted))


def _chosen(rewritten: Rewritten, taxonomy: Taxonomy) -> dict[Output, list[int]]:
    """The granularities of every output, finest first."""
    levels = len(rewritten.levels)
    everything = list(range(len(taxonomy.sizes)))
    if taxonomy.heads is not None and len(taxonomy.heads) != levels:
        raise SchemeError(f"taxonomy: heads is for {len(taxonomy.heads)} levels, and the model has {levels}")
    if taxonomy.serve is not None and len(taxonomy.serve) != levels:
        raise SchemeError(f"taxonomy: serve is for {len(taxonomy.serve)} levels, and the model has {levels}")
    own = [
        everything if taxonomy.heads is None else [taxonomy.index(name) for name in taxonomy.heads[level]]
        for level in range(levels)
    ]
    for level in rewritten.backbones:
        if own[level][0] != 0:
            raise SchemeError(
                f"taxonomy: heads: level {level} ({rewritten.levels[level].name}) equals the backbone, which predicts "
                f"{taxonomy.granularities[0]}"
            )
    any_level = [place for place in everything if any(place in one for one in own)]
    return {output: any_level if output.role == "member" else own[output.index] for output in rewritten.names}


def _served(taxonomy: Taxonomy, level: int, chosen: Mapping[Output, Sequence[int]]) -> int:
    return chosen[Output("level", level)][0] if taxonomy.serve is None else taxonomy.index(taxonomy.serve[level])


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
        """The part of a value, or of each of several, whose dimension `dim` holds the classes of all granularities."""
        key = (node, dim, granularity)
        if key not in self.known:
            found = self.operand(node, dim, granularity) or self.moved(node, dim, granularity)
            self.known[key] = found or self.cut(node, dim, granularity)
        return self.known[key]

    def operand(self, node: fx.Node, dim: int, granularity: int) -> fx.Node | None:
        """What a concatenation of the granularities read."""
        tensors: list[fx.Node] = list(bound(node)["tensors"]) if has_kind(node, "join") else []
        if not tensors or len(type_of(tensors[0]).shape) != len(type_of(node).shape):
            return None
        sizes = [type_of(one).shape[dim] for one in tensors]
        together = bound(node)["dim"] % len(type_of(node).shape) == dim
        return tensors[granularity] if together and sizes == list(map(Size, self.taxonomy.sizes)) else None

    def moved(self, node: fx.Node, dim: int, granularity: int) -> fx.Node | None:
        """The operation on parts of what it reads, where it does not mix classes; None where that is not known."""
        source = result_of(node)
        if source is not None:
            if self.sources(source, dim) is None:
                return None
            return self.again(node, {source: self.of(source, dim, granularity)}, dim, granularity)
        found = self.sources(node, dim)
        if found is None:
            return None
        own = {source: self.of(source, place, granularity) for source, place in found.items()}
        return self.again(node, own, dim, granularity)

    def sources(self, node: fx.Node, dim: int) -> dict[fx.Node, int] | None:
        """Where the classes of a result lie in what an operation reads, if it does not mix them."""
        found = traits(node).sources
        return found(node, dim) if found is not None else None

    def again(self, node: fx.Node, own: Mapping[fx.Node, fx.Node], dim: int, granularity: int) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: own.get(source, source))
        return self.emit(node, node.target, args, kwargs, dim, granularity)

    def cut(self, node: fx.Node, dim: int, granularity: int) -> fx.Node:
        return self.emit(node, aten.slice.Tensor, (node, dim, *self.bounds[granularity]), {}, dim, granularity)

    def emit(
        self, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dim: int, granularity: int
    ) -> fx.Node:
        meta = {"origin": origin_of(like)}
        name = f"{like.name}_{self.taxonomy.granularities[granularity]}"
        return self.builder.call(target, args, kwargs, name, meta)


def _without_unread(program: Program, before: Program, backbone: Program) -> Program:
    """Without the tensors of heads that no level has, unless the backbone has them."""
    read, was_read = ({str(node.target) for node in one.graph.find_nodes(op="get_attr")} for one in (program, before))
    unread = was_read - read - backbone.tensors.keys()
    tensors = {name: tensor for name, tensor in program.tensors.items() if name not in unread}
    return replace(program, tensors=tensors, transient=program.transient - unread)


def _with_names(rewritten: Rewritten) -> Program:
    """Tensors of heads under `anytime.<level>.taxonomy` if one level alone has them, else under `anytime.taxonomy`.

    The graph is our own: its names are changed in place."""
    program = rewritten.program
    readers: dict[str, set[int]] = {}
    for output, prediction in rewritten.outputs.items():
        for node in ancestors([prediction]) if output.role == "level" else ():
            if node.op == "get_attr":
                readers.setdefault(str(node.target), set()).add(output.index)
    settled = {name: names.settled(name, readers.get(name, ())) for name in program.tensors}
    for node in program.graph.find_nodes(op="get_attr"):
        node.target = settled[str(node.target)]
    return replace(program, tensors={settled[name]: tensor for name, tensor in program.tensors.items()})
