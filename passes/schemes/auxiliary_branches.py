"""Auxiliary branches: exits that fork off a backbone and are made of its own blocks (DHM, Li and Chen 2020; DKS).

The rewrite:

1. the backbone stays as it is, and its own output is the last level;
2. behind each fork the rest of the network is copied with parameters of its own, with fewer repeats of its blocks and
   at other widths (`branch`), or a classifier reads pooled features (`pooled_head`);
3. branches that are chosen automatically fork where the parts between forks cost about the same, behind stages if there
   are enough, and are as large as the order of costs allows: same blocks, same resolutions, fewer repeats, and only if
   that is not enough half the width or a pooled head.

A branch that costs more than the backbone is trained only. Refused: forks that data flows around, backbones behind
whose forks nothing can be left out or narrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import fx, nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.blocks import Block, Blocks, find_blocks
from anytimeify.analysis.cost import cost, sizes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program
from anytimeify.ir.rewritten import LevelData, Output, Rewritten
from anytimeify.passes.rewrites.branch import Branch, grow
from anytimeify.passes.rewrites.cuts import Cut, cut_named, even_cuts, name_of_cut
from anytimeify.passes.rewrites.downstream import Rest
from anytimeify.passes.rewrites.pooled_head import pooled_head
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.scheme import Scheme

__all__ = ["AuxiliaryBranches"]


@dataclass(frozen=True)
class AuxiliaryBranches(Scheme):
    """Levels are the exits in the order of their forks; the last one is the backbone.

    Fields
        branches: how many to place automatically, or each as a `Branch`.
        sampling: which mimicking terms of the loss are active: `"all"`; `"bernoulli"`: those between branches that are
            drawn with `probability`, `per` epoch or step; `"terms"`: at every step some terms drawn at random are left
            out, as in the authors' code (`HierarchicalMimicking`).
        probability: of a branch to be active, for `"bernoulli"`.
        per: how often branches are drawn, `"epoch"` (`net.loss.resample()`) or `"step"`.
        heads: of automatic branches: `"branch"` or `"pool"`, as in `Branch`.

    Raises `SchemeError` for fields out of range, and for branches that the backbone cannot have.
    """

    name: ClassVar[str] = "auxiliary-branches"
    nested: ClassVar[bool] = False  # an early branch may be the larger one

    branches: int | tuple[Branch, ...] = 2
    sampling: Literal["all", "bernoulli", "terms"] = "all"
    probability: float = 0.5
    per: Literal["epoch", "step"] = "epoch"
    heads: Literal["branch", "pool"] = "branch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", as_branches(self.branches))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {', '.join(choices)}")
        probability: Any = self.probability
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 < probability <= 1:
            raise SchemeError(f"probability={probability!r}: expected a number in (0, 1]")

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        builder = Builder.copying(captured.program)
        exits = place(captured, axes, self.branches, self.heads)
        drawn = [captured.fresh() if captured.fresh is not None else None for _ in exits]
        outputs = {
            Output("level", level): exit(builder, level, values)
            for level, (exit, values) in enumerate(zip(exits, drawn, strict=True))
        }
        outputs[Output("level", len(exits))] = builder.shared[captured.program.outputs[0]]
        program, names = builder.build_named(outputs, captured.program.graph.output_node())
        macs = [cost(project(program, [k]), captured.batch, *sizes(captured)).macs for k in range(len(outputs))]
        exit_names = _numbered([exit.name for exit in exits])
        return Rewritten(
            program,
            names,
            (
                *(LevelData(name, training_only=one > macs[-1]) for name, one in zip(exit_names, macs, strict=False)),
                LevelData("full", backbone=0),
            ),
            resumable=True,
            notes=tuple(builder.notes),
        )

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.hierarchical_mimicking import HierarchicalMimicking

        return HierarchicalMimicking(sampling=self.sampling, probability=self.probability, per=self.per)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which each is there once: the second branch at a fork says so."""
    seen = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, seen, strict=True)]


_CHOICES = {
    "sampling": ("all", "bernoulli", "terms"),
    "per": ("epoch", "step"),
    "heads": ("branch", "pool"),
}


def as_branches(given: Any) -> int | tuple[Branch, ...]:
    """A number of branches, or each of them; a single one in a tuple. The name of a layer is a branch behind it."""
    if isinstance(given, Branch | str):
        given = (given,)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return given
    if isinstance(given, tuple | list) and given and all(isinstance(one, Branch | str) for one in given):
        return tuple(one if isinstance(one, Branch) else Branch(one) for one in given)
    raise SchemeError(
        f"branches={given!r}: expected a number of 1 or more, or branches such as (Branch('layer2'), Branch('layer3'))"
    )


@dataclass(frozen=True)
class Exit:
    """A branch that is decided: `exit(builder, level, drawn)` appends it and gives its prediction."""

    name: str
    grow: Callable[[Builder, int, Any], fx.Node]

    def __call__(self, builder: Builder, level: int, drawn: Any) -> fx.Node:
        return self.grow(builder, level, drawn)


def place(captured: Captured, axes: Axes, branches: int | tuple[Branch, ...], heads: str) -> list[Exit]:
    """The branches in the order of their forks."""
    blocks = find_blocks(captured.program, axes)
    if isinstance(branches, int):
        return _automatic(captured, axes, blocks, branches, heads)
    order = {node: index for index, node in enumerate(captured.program.graph.nodes)}
    forks = [(cut_named(captured.program, blocks, branch.at, field="at"), branch) for branch in branches]
    forks.sort(key=lambda fork: order[fork[0][-1]])
    return [_exit(captured, axes, blocks, cut, branch) for cut, branch in forks]


def _exit(captured: Captured, axes: Axes, blocks: Blocks, cut: Cut, branch: Branch) -> Exit:
    name = f"branch at {branch.at}"
    if branch.head == "pool":
        return _pooled(captured, axes, cut, name)
    rest = Rest.behind(captured, axes, blocks, cut)
    left_out = rest.without(dict(branch.repeats))
    widths = rest.widths(dict(branch.widths), left_out)
    return Exit(name, partial(_grow, rest, left_out, widths))


def _grow(rest: Rest, left_out: Sequence[Block], widths: Widths, builder: Builder, level: int, drawn: Any) -> fx.Node:
    return grow(builder, rest, left_out, widths, level, drawn)


def _pooled(captured: Captured, axes: Axes, cut: Cut, name: str) -> Exit:
    if len(cut) != 1:
        raise SchemeError("a pooled head reads one tensor, and the fork is at several inputs")
    return Exit(name, lambda builder, level, drawn: pooled_head(builder, captured.program, axes, cut[0], level))


# Automatic branches.


def _automatic(captured: Captured, axes: Axes, blocks: Blocks, count: int, heads: str) -> list[Exit]:
    """Forks at even shares of cost, and at each the largest branch that keeps the order of costs strict; else the last
    forks at which there are such branches."""
    program = captured.program
    even = [
        list(dict.fromkeys(_settled(program, blocks, cut) for cut in cuts))
        for cuts in even_cuts(captured, blocks, count)
    ]
    anywhere: list[Cut] = [(block.end,) for block in blocks.blocks[:-1]]
    for cuts in [*even, anywhere]:
        chosen = _cheaper_and_cheaper(captured, axes, blocks, cuts, heads, skip=cuts is anywhere)[:count]
        if len(chosen) == count:
            return chosen[::-1]
    raise SchemeError(
        f"branches={count}: no branches of this network's own blocks would be cheaper than the network and than the "
        "branches behind them; fewer branches may do, or say each as a Branch"
        if even
        else f"branches={count}: this network has too few places to fork at with layers behind each; use fewer branches"
    )


def _cheaper_and_cheaper(
    captured: Captured, axes: Axes, blocks: Blocks, cuts: Sequence[Cut], heads: str, *, skip: bool
) -> list[Exit]:
    """From the last fork to the first, the largest branch that is noticeably cheaper than the one before; a fork
    without any is the end, or is skipped."""
    limit = _WORTH * cost(captured.program, captured.batch, *sizes(captured)).macs
    chosen: list[Exit] = []
    for cut in reversed(cuts):
        found = ((option, _macs(captured, option)) for option in _options(captured, axes, blocks, cut, heads))
        best = next(((option, macs) for option, macs in found if 0 < macs < limit), None)
        if best is not None:
            chosen.append(best[0])
            limit = _WORTH * best[1]
        elif not skip:
            break
    return chosen


def _settled(program: Program, blocks: Blocks, cut: Cut) -> Cut:
    """The end of the last residual block of the stage that a cut ends, where that ends a larger part of the network:
    the first layers of a block that goes on at another resolution are left to the branch."""
    if len(cut) > 1:
        return cut
    node = cut[0]
    stage = next((stage for stage in blocks.stages if any(block.end is node for block in stage.blocks)), None)
    if stage is None:  # inside a block
        return cut
    place = next(place for place, block in enumerate(stage.blocks) if block.end is node)
    before = [block.end for block in stage.blocks[:place] if block.branching]
    nodes = [node, *before[-1:]]
    return (min(nodes, key=lambda one: _depth(program, blocks, one)),)


def _depth(program: Program, blocks: Blocks, node: fx.Node) -> int:
    """How deep in the modules the part is that ends at a cut point."""
    name = name_of_cut(program, blocks, (node,))
    return name.count(".") if name != node.name else len(node.name)


def _options(captured: Captured, axes: Axes, blocks: Blocks, cut: Cut, heads: str) -> Iterator[Exit]:
    """What may fork at a node, from the largest to the smallest."""
    name = f"branch at {name_of_cut(captured.program, blocks, cut)}"
    if heads == "branch":
        rest = Rest.behind(captured, axes, blocks, cut)
        for share, multiple in _SIZES:
            left_out = rest.shortened(share)
            try:
                widths = rest.widths({"": multiple} if multiple != 1 else {}, left_out)
            except SchemeError:
                continue  # nothing to narrow
            yield Exit(name, partial(_grow, rest, left_out, widths))
    if len(cut) == 1:
        yield _pooled(captured, axes, cut, name)


_WORTH = 0.98  # of the cost of the next level: an exit that saves less is none
_SIZES: Sequence[tuple[float, float]] = ((0.5, 1.0), (0.25, 1.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.5), (0.0, 0.25))


def _macs(captured: Captured, exit: Exit) -> int:
    """The cost of an exit with its part of the trunk; 0 where it cannot be."""
    builder = Builder.copying(captured.program)
    try:
        output = exit(builder, 0, None)
    except SchemeError:
        return 0
    program = builder.build([output], captured.program.graph.output_node())
    return cost(program, captured.batch, *sizes(captured)).macs
