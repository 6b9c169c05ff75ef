"""Exits of a network: where branches fork off, chosen or given, and which of them are cheap enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.blocks import Block, Blocks, find_blocks
from anytimeify.analysis.cost import cost, sizes
from anytimeify.analysis.residual_units import ResidualUnits
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Reinitialised
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.sizes import without_data
from anytimeify.passes.rewrites.branch import Branch, grow
from anytimeify.passes.rewrites.cuts import Cut, cut_named, even_cuts, name_of_cut
from anytimeify.passes.rewrites.downstream import Downstream, has_layer
from anytimeify.passes.rewrites.forks import Fork, even_forks, fork_at
from anytimeify.passes.rewrites.pooled_head import pooled_head
from anytimeify.passes.rewrites.shaped_head import ShapedHead
from anytimeify.passes.rewrites.trunks import Trunks

__all__ = ["Exit", "as_branches", "place_exits"]


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
    reads: Set[str] | None = frozenset()  # the tensors that it has drawn of its own; None: it looks at all of them

    def __call__(self, builder: Builder, level: int, drawn: Any) -> fx.Node:
        return self.grow(builder, level, drawn)

    def drawn(self, reinitialised: Reinitialised | None) -> Mapping[str, Tensor] | None:
        """What the branch starts with, where the backbone's initialisers are known."""
        if reinitialised is None:
            return None
        return reinitialised(self.reads) if self.reads is None or self.reads else {}


def place_exits(captured: Captured, axes: Axes, branches: int | tuple[Branch, ...], heads: str) -> list[Exit]:
    """The branches in the order of their forks."""
    blocks = find_blocks(captured.program, axes)
    if isinstance(branches, int):
        return _automatic(captured, axes, blocks, branches, heads)
    order = {node: index for index, node in enumerate(captured.program.graph.nodes)}
    named = partial(cut_named, captured.program, blocks, field="at")
    forks = [(named(branch.at, anywhere=branch.head == "pool"), branch) for branch in branches]
    forks.sort(key=lambda fork: order[fork[0][-1]])
    return [_exit(captured, axes, blocks, cut, branch) for cut, branch in forks]


def _exit(captured: Captured, axes: Axes, blocks: Blocks, cut: Cut, branch: Branch) -> Exit:
    name = f"branch at {branch.at}"
    if branch.head == "pool":
        return _pooled(captured, axes, cut, name)
    downstream = Downstream.of(captured, axes, blocks, cut)
    left_out = downstream.without(dict(branch.repeats))
    widths = downstream.widths(dict(branch.widths), left_out)
    return _branch(name, downstream, left_out, widths)


def _branch(name: str, downstream: Downstream, left_out: Sequence[Block], widths: Widths) -> Exit:
    reads = None if widths else frozenset(downstream.own_tensors())
    return Exit(name, partial(_grow, downstream, left_out, widths), reads)


def _grow(
    downstream: Downstream, left_out: Sequence[Block], widths: Widths, builder: Builder, level: int, drawn: Any
) -> fx.Node:
    return grow(builder, downstream, left_out, widths, level, drawn)


def _pooled(captured: Captured, axes: Axes, cut: Cut, name: str) -> Exit:
    if len(cut) != 1:
        raise SchemeError("a pooled head reads one tensor, and the fork is at several inputs")
    if len(type_of(captured.program.outputs[0]).shape) != 2:
        head = ShapedHead.of(captured.program, axes, cut[0])
        return Exit(name, lambda builder, level, drawn: head(builder, level))
    return _classifier(captured, axes, cut[0], name)


def _classifier(captured: Captured, axes: Axes, at: fx.Node, name: str) -> Exit:
    return Exit(name, lambda builder, level, drawn: pooled_head(builder, captured.program, axes, at, level))


def _told(exit: Exit) -> Exit:
    """A pooled head that nobody asked for: the report says so."""

    def append(builder: Builder, level: int, drawn: Any) -> fx.Node:
        place = exit.name.removeprefix("branch at ")
        builder.notes.append(
            f"level {level}: a pooled head at {place}, for no branch of the network's own blocks fits there"
        )
        return exit(builder, level, drawn)

    return Exit(exit.name, append, exit.reads)


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
        options = partial(_options, captured, axes, blocks, heads)
        chosen = _cheaper_and_cheaper(captured, options, cuts, skip=cuts is anywhere)[:count]
        if len(chosen) == count:
            return chosen[::-1]
    if heads == "branch":
        units = ResidualUnits(program)
        finer = partial(_finer_options, captured, axes, blocks, units)
        for forks in [*(list(map(partial(fork_at, program), cuts)) for cuts in even), even_forks(captured, count)]:
            chosen = _cheaper_and_cheaper(captured, finer, forks, skip=False)[:count]
            if len(chosen) == count:
                return chosen[::-1]
    chosen = _pooled_exits(captured, axes, blocks, count, heads)
    if len(chosen) == count:
        return chosen[::-1]
    raise SchemeError(
        f"branches={count}: no branches of this network's own blocks would be cheaper than the network and than the "
        f"branches behind them, and {_why_no_heads(captured, axes, chosen)}"
    )


def _why_no_heads(captured: Captured, axes: Axes, chosen: Sequence[Exit]) -> str:
    reason = ShapedHead.refusal(captured.program, axes)
    if reason:
        return f"{reason}; choose what the model returns with output=, or say each branch as a Branch"
    if chosen:
        return f"pooled heads only at {len(chosen)} place{'s' * (len(chosen) > 1)}; use fewer branches"
    return "no place is left at which a pooled head would be; the network is too small for exits, use another scheme"


def _cheaper_and_cheaper(
    captured: Captured, options: Callable[[Any], Iterator[Exit]], forks: Sequence[Cut | Fork], *, skip: bool
) -> list[Exit]:
    """From the last fork to the first, the largest branch that is noticeably cheaper than the one before; a fork
    without any is the end, or is skipped."""
    limit = _WORTH * cost(captured.program, captured.batch, *sizes(captured)).macs
    chosen: list[Exit] = []
    for fork in reversed(forks):
        found = ((option, _macs(captured, option)) for option in options(fork))
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


def _options(captured: Captured, axes: Axes, blocks: Blocks, heads: str, cut: Cut) -> Iterator[Exit]:
    """What may fork at a node, from the largest to the smallest."""
    name = f"branch at {name_of_cut(captured.program, blocks, cut)}"
    if heads == "branch":
        downstream = Downstream.of(captured, axes, blocks, cut)
        for share, multiple in _SIZES:
            left_out = downstream.shortened(share)
            try:
                widths = downstream.widths({"": multiple} if multiple != 1 else {}, left_out)
            except SchemeError:
                continue  # nothing to narrow
            yield _branch(name, downstream, left_out, widths)
    if len(cut) == 1:
        head = _classifier(captured, axes, cut[0], name)
        yield head if heads == "pool" else _told(head)


def _finer_options(captured: Captured, axes: Axes, blocks: Blocks, units: ResidualUnits, fork: Fork) -> Iterator[Exit]:
    """Branches of the network's own blocks from the largest to the smallest, of which residual units are left out."""
    name = f"branch at {fork.name(captured.program, blocks)}"
    downstream = Downstream.within(captured, axes, blocks, fork.behind, units)
    for share, multiple in _SIZES:
        left_out = max(downstream.shortenings(share), key=lambda found: sum(map(has_layer, found)))
        try:
            widths = downstream.widths({"": multiple} if multiple != 1 else {}, left_out)
        except SchemeError:
            continue  # nothing to narrow
        yield Exit(name, partial(_grow, downstream, left_out, widths))


def _pooled_exits(captured: Captured, axes: Axes, blocks: Blocks, count: int, heads: str) -> list[Exit]:
    """Pooled heads from the last to the first, at even shares of the cost."""
    ends = {block.end for block in blocks.blocks} | {unit.end for unit in ResidualUnits(captured.program).units}
    places = Trunks(captured, axes)
    for among in (ends, None):
        chosen: list[Exit] = []
        limit = _WORTH * places.total
        for number in range(count, 0, -1):
            found = (
                (option, _macs(captured, option))
                for head in places.heads(number / (count + 1), limit, among)
                for option in [_shaped(head, blocks, captured.program)]
            )
            best = next(((option, macs) for option, macs in found if 0 < macs < limit), None)
            if best is None:
                break
            chosen.append(best[0] if heads == "pool" else _told(best[0]))
            limit = _WORTH * best[1]
        if len(chosen) == count:
            break
    return chosen


def _shaped(head: ShapedHead, blocks: Blocks, program: Program) -> Exit:
    name = f"branch at {name_of_cut(program, blocks, (head.at,))}"
    return Exit(name, lambda builder, level, drawn: head(builder, level))


_WORTH = 0.98  # of the cost of the next level: an exit that saves less is none
_SIZES: Sequence[tuple[float, float]] = ((0.5, 1.0), (0.25, 1.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.5), (0.0, 0.25))


def _macs(captured: Captured, exit: Exit) -> int:
    """The cost of an exit with its part of the trunk, of shapes alone; 0 where it cannot be."""
    builder = Builder.copying(without_data(captured.program))
    try:
        output = exit(builder, 0, None)
    except SchemeError:
        return 0
    program = builder.build([output], captured.program.graph.output_node())
    return cost(program, captured.batch, *sizes(captured)).macs
