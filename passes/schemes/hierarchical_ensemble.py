"""Hierarchical ensembles: a tree of networks that share their beginning (HNE, Ruiz and Verbeek 2020).

The rewrite:

1. the backbone is cut at some of its nodes, one after the other; after each cut every copy goes on as several replicas
   with parameters of their own, so that the leaves of the tree are networks which share more or less of their trunk;
2. a prediction of `n` leaves is the average of the logits of the first `n` (Eq. 1 and 5), for which only the ancestors
   of those leaves are computed; the first leaf is the backbone, and the levels are the sub-trees that begin with it;
3. isomorphic replicas are one operation (`fuse_replicas`) over stacked parameters, and beside that joint graph there is
   one for each level, and the unrolled one, which computes leaf after leaf.

Several branches after one cut are the multi-branch networks of the paper, a cut at the input gives independent ones.
Refused: cuts that data flows around, or after which nothing has parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.blocks import find_blocks
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Size, TensorType, names
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.rewritten import LevelData, Output, Rewritten, Role
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.fusion.batching_layout import Value
from anytimeify.passes.fusion.fuse_replicas import RULES, larger_batch
from anytimeify.passes.fusion.replicas import Replicas
from anytimeify.passes.rewrites.balanced_cuts import balanced_cuts
from anytimeify.passes.rewrites.cuts import Cut, cut_named
from anytimeify.passes.rewrites.frozen import is_trained
from anytimeify.passes.rewrites.replicate import Tree, depths, stacked, tensor_depths
from anytimeify.passes.rewrites.tree_size import Line, TreeSize
from anytimeify.passes.scheme import Scheme

__all__ = ["HierarchicalEnsemble"]

aten = torch.ops.aten
_MOST_LEAVES = 256  # a file may ask for any number, and every leaf is a copy


@dataclass(frozen=True)
class HierarchicalEnsemble(Scheme):
    """Levels are ensembles of the first 1, 2, 4, ... leaves of a tree of networks; level 0 is the backbone.

    Fields
        depth: how many times a binary tree splits, at cuts that are chosen: where the resolution changes if there are
            enough such places, in any case so that the parts between cuts cost about the same.
        cuts: instead of `depth`, the names of layers after which to split in two; `"input"` is the very beginning.
        splits: instead of either, pairs of a cut and how many replicas every copy goes on as there: `(("layer2", 16),)`
            is a network of 16 branches.
        fuse: compute replicas as one operation where there is a rule for it. Changes nothing but speed.
        init: `"fresh"`: the other leaves' parameters start as the backbone's own did, by its initialisers or as its
            constructor drew them; `"copy"`: they start as copies of the backbone's.
        sizes: `"trees"`: a level for every sub-tree that begins with the first leaf; `"powers"`: one for 1, 2, 4, ...
            and all leaves, whatever the tree is; `"all"`: one for every number of leaves.

    Copies of frozen parts hold the backbone's values and are frozen, whatever `init` says.

    Raises `SchemeError` for fields out of range, and for cuts that the backbone cannot have.
    """

    name: ClassVar[str] = "hierarchical-ensemble"

    depth: int = 2
    cuts: tuple[str, ...] = ()
    splits: tuple[tuple[str, int], ...] = ()
    fuse: bool = True
    init: Literal["fresh", "copy"] = "fresh"
    sizes: Literal["trees", "powers", "all"] = "trees"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(map(_layer, _listed(self.cuts))))
        object.__setattr__(self, "splits", tuple(map(_split, _pairs(self.splits))))
        if self.cuts and self.splits:
            raise SchemeError("cuts and splits both say where to split; give one of them")
        depth: Any = self.depth
        fuse: Any = self.fuse
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise SchemeError(f"depth={self.depth!r}: expected a whole number, 1 or more")
        fanouts = [fanout for _, fanout in self.splits] or [2] * (len(self.cuts) or min(depth, _MOST_LEAVES))
        if math.prod(fanouts) > _MOST_LEAVES:
            field = "splits" if self.splits else "cuts" if self.cuts else f"depth={depth}"
            raise SchemeError(f"{field}: that is a tree of more than {_MOST_LEAVES} leaves, the most there can be")
        for field, choices in (("init", ("fresh", "copy")), ("sizes", ("trees", "powers", "all"))):
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {' or '.join(choices)}")
        if not isinstance(fuse, bool):
            raise SchemeError(f"fuse={self.fuse!r}: expected true or false")

    @property
    def copies(self) -> int:
        """The unrolled graph has as many as there are leaves, those of the levels fewer."""
        return 2 * math.prod(self._fanouts)

    @property
    def _fanouts(self) -> list[int]:
        return [fanout for _, fanout in self.splits] or [2] * (len(self.cuts) or self.depth)

    def estimated(self, captured: Captured, axes: Axes) -> ProgramSize:
        cuts, tree = self._cuts(captured, axes)
        size = _size(captured.program, cuts, tree)
        if not self.fuse:
            return size.size(self._counts(tree), None)
        two, three = (self._fused(captured, axes, cuts[:1], Tree((members,))) for members in (2, 3))
        return size.size(self._counts(tree), Line(3 * two - 2 * three, three - two))

    def _fused(self, captured: Captured, axes: Axes, cuts: list[Cut], tree: Tree) -> float:
        """The nodes that a call becomes which is fused, in a tree of one split."""
        one = replace(self, cuts=(), splits=(), depth=1, sizes="trees", init="copy")
        made = ProgramSize.of(one._apply(captured, axes, cuts, tree).program)
        size = _size(captured.program, cuts, tree)
        return (made.nodes - size.shared - size.unrolled()) / max(1, size.calls.get(1, 0))

    def _counts(self, tree: Tree) -> tuple[int, ...]:
        """How many leaves every level has."""
        if self.sizes == "trees":
            return tree.sub_trees()
        every = range(1, tree.leaves + 1)
        return tuple(
            count for count in every if self.sizes == "all" or count & (count - 1) == 0 or count == tree.leaves
        )

    @property
    def reads_values(self) -> str:
        return "init='fresh' draws the other leaves as the backbone was (init='copy' does not)" * (self.init == "fresh")

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        dtype = type_of(program.outputs[0]).dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            raise SchemeError(
                f"the prediction of this network is of type {dtype}, of which no average can be taken; choose another "
                "output of it, such as its logits"
            )
        return self._apply(captured, axes, *self._cuts(captured, axes))

    def _apply(self, captured: Captured, axes: Axes, cuts: list[Cut], tree: Tree) -> Rewritten:
        program = captured.program
        places = depths(program, cuts)
        tensors = tensor_depths(program, places)
        for depth in range(1, len(cuts) + 1):
            if depth not in tensors.values():
                raise SchemeError(
                    f"nothing between {_names(cuts[depth - 1])} and the next cut or the end has parameters of its own, "
                    "so the replicas there would all be the same; cut earlier"
                )
        reinitialised = captured.reinitialised if self.init == "fresh" else None
        builder = _builder(replace(program, tensors=stacked(program, tree, tensors, reinitialised)))
        counts = self._counts(tree)
        graph = _Ensemble(builder, program, axes, tree, tensors)
        unrolled, _ = graph.leaves(tree.leaves, "", fuse=False)
        steps = [unrolled.average(count) for count in counts]
        notes = list(_alike(program, cuts, tensors))
        if self.fuse:
            joint, separate = graph.leaves(tree.leaves, "", fuse=True)
            levels = [joint.average(count) for count in counts]
            alone = [steps[0], *(self._alone(graph, count, level) for level, count in enumerate(counts[1:-1], 1))]
            alone.append(levels[-1])
            members = [joint.one(leaf) for leaf in range(tree.leaves)]
            notes += _said(separate)
        else:
            levels = alone = steps
            members = [unrolled.one(leaf) for leaf in range(tree.leaves)]
        forms: dict[Role, list[fx.Node]] = {"level": levels, "member": members, "alone": alone, "step": steps}
        outputs = {Output(role, index): node for role, nodes in forms.items() for index, node in enumerate(nodes)}
        return Rewritten(
            *builder.build_named(outputs, program.graph.output_node()),
            tuple(
                LevelData("1 leaf" if count == 1 else f"{count} leaves", count, backbone=0 if level == 0 else None)
                for level, count in enumerate(counts)
            ),
            resumable=True,
            stacked_parameters=frozenset(name for name, depth in tensors.items() if depth),
            notes=tuple(notes),
        )

    def _alone(self, graph: _Ensemble, count: int, level: int) -> fx.Node:
        """The prediction of a level at its own cost."""
        leaves, _ = graph.leaves(count, names.level_prefix(level), fuse=True)
        return leaves.average(count)

    def _cuts(self, captured: Captured, axes: Axes) -> tuple[list[Cut], Tree]:
        blocks = find_blocks(captured.program, axes)
        named = [(cut, 2) for cut in self.cuts] or list(self.splits)
        if not named:
            chosen = balanced_cuts(captured, blocks, self.depth)
            return chosen, Tree((2,) * self.depth)
        cuts = [cut_named(captured.program, blocks, name) for name, _ in named]
        order = {node: place for place, node in enumerate(captured.program.graph.nodes)}
        for (one, first), (other, second) in itertools.pairwise(zip([name for name, _ in named], cuts, strict=True)):
            if order[second[0]] <= order[first[0]]:
                raise SchemeError(f"cuts: {other!r} does not come after {one!r}; list them in the order of the network")
        return cuts, Tree(tuple(fanout for _, fanout in named))

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.hierarchical_co_distillation import HierarchicalCoDistillation

        return HierarchicalCoDistillation()


# Fields as a user or a spec string may give them.


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _pairs(value: Any) -> tuple[Any, ...]:
    """Pairs as they are; a single one, as a spec string gives it, in a tuple."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else _listed(value)
    return (pairs,) if pairs and not isinstance(pairs[0], tuple | list) else pairs


def _layer(name: Any) -> str:
    """The layers of an `nn.Sequential` have numbers for names; a number will do."""
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise SchemeError(f"cuts: {name!r} is not the name of a layer; expected names such as layer1,layer2")
    return str(name)


def _split(pair: Any) -> tuple[str, int]:
    fanout = pair[1] if isinstance(pair, tuple | list) and len(pair) == 2 else None
    if isinstance(fanout, bool) or not isinstance(fanout, int) or fanout < 2:
        raise SchemeError(f"splits: {pair!r} is not a pair of a layer and a number of 2 or more")
    return _layer(pair[0]), fanout


def _size(program: Program, cuts: list[Cut], tree: Tree) -> TreeSize:
    places = depths(program, cuts)
    return TreeSize.of(program, tree, places, tensor_depths(program, places))


def _builder(program: Program) -> Builder:
    """A builder whose tensors are stacks, and whose nodes that read them say so."""
    builder = Builder.copying(program)
    for node in builder.graph.find_nodes(op="get_attr"):
        tensor = program.tensors[str(node.target)]
        node.meta["type"] = TensorType(tuple(map(Size, tensor.shape)), tensor.dtype)
    return builder


@dataclass(frozen=True)
class _Ensemble:
    """Graphs of some leaves of one tree."""

    builder: Builder
    program: Program
    axes: Axes
    tree: Tree
    tensors: Mapping[str, int]

    def leaves(self, count: int, prefix: str, *, fuse: bool) -> tuple[_Leaves, Mapping[str, int]]:
        """The predictions of the first leaves, and which operations run member by member."""
        replicas = Replicas(
            self.builder, self.program, self.axes, self.tree, self.tensors, count, prefix, RULES if fuse else {},
            larger_batch if fuse else None,
        )  # fmt: skip
        (value,) = replicas.run()
        return _Leaves(replicas, self.program.outputs[0], value), replicas.separate


@dataclass
class _Leaves:
    """The predictions of leaves, side by side or separate."""

    replicas: Replicas
    output: fx.Node
    value: Value

    @property
    def _wide(self) -> tuple[fx.Node, int]:
        s, value = self.replicas, self.value
        place = s.batch_dim(self.output) if value.layout == "batch" else 1
        key = (self.output, "wide", value.depth)
        if key not in s.forms:
            s.forms[key] = s.unflatten(value.node, place, s.count(value.depth), "leaves")
        return s.forms[key], place

    def one(self, index: int) -> fx.Node:
        s = self.replicas
        if self.value.layout in ("one", "separate"):
            node: fx.Node = self.value.nodes[index if self.value.layout == "separate" else 0]
            return node
        wide, place = self._wide
        return s.emit(aten.select.int, (wide, place, index), f"leaf_{index}")

    def average(self, count: int) -> fx.Node:
        """The mean of the logits of the first leaves (Eq. 1)."""
        if count == 1:
            return self.one(0)
        s = self.replicas
        if self.value.layout == "separate":
            wide, place = s.emit(aten.stack.default, (list(self.value.nodes[:count]), 0), "leaves"), 0
        else:
            wide, place = self._wide
            if count < type_of(wide).shape[place].coefficient:
                wide = s.emit(aten.slice.Tensor, (wide, place, 0, count), f"leaves_{count}")
        return s.emit(aten.mean.dim, (wide, [place]), f"mean_{count}")


def _said(separate: Mapping[str, int]) -> list[str]:
    if not separate:
        return []
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(separate.items(), key=lambda item: -item[1])[:6])
    return [f"replicas are not fused, but computed one after the other, in: {listed}"]


def _alike(program: Program, cuts: Sequence[Cut], tensors: Mapping[str, int]) -> Iterator[str]:
    """Where all that replicas have is frozen, so that each computes what the others do."""
    for depth, cut in enumerate(cuts, start=1):
        own = [program.tensors[name] for name, place in tensors.items() if place == depth]
        if not any(map(is_trained, own)):
            yield f"replicas behind {_names(cut)} are all the same there: what they have of their own is frozen"


def _names(cut: Cut) -> str:
    return " and ".join(node.name for node in cut)
