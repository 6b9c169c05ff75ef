"""Numbers that were made of a channel count: noted, or marked to follow the widths.

Which numbers count an axis is found by `anytimeify.analysis.counts`. A marked number has the mark `counts` in the meta
of its node, by which `narrow` computes it anew at every width; the full network keeps the number that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.counts import Count, counts
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Captured
from anytimeify.ir.node_meta import Counted, origin_of

__all__ = ["channel_counts"]


@rewrite("channel counts")
def channel_counts(captured: Captured, axes: Axes, kept: Sequence[Widths], *, scale: bool) -> Captured:
    """The backbone with a note on every number that counts an axis which levels narrow; with `scale`, those of which it
    is clear which axis they count are marked."""
    found = list(counts(captured.program, axes, kept))
    if not found:
        return captured
    marked: dict[fx.Node, list[Counted]] = {}
    for one in found:
        if scale and one.alike:
            places = tuple((node.name, dim) for node, dim in one.places)
            marked.setdefault(one.node, []).append(Counted(one.argument, one.power, places))
    captured = replace(captured, notes=(*captured.notes, *_notes(found, scale=scale)))
    if not marked:
        return captured
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in captured.program.graph.nodes:
        copies[node] = copy_node(graph, node, copies.__getitem__)
        if node in marked:
            copies[node].meta["counts"] = tuple(marked[node])
    return replace(captured, program=replace(captured.program, graph=graph))


def _notes(found: Sequence[Count], *, scale: bool) -> list[str]:
    """One note for all numbers of one line of the source and of equal value."""
    places: dict[tuple[str, str], list[Count]] = {}
    for one in found:
        source = origin_of(one.node).source or one.node.name
        places.setdefault((str(one), source), []).append(one)
    return [_note(same, scale=scale) for same in places.values()]


def _note(same: Sequence[Count], *, scale: bool) -> str:
    first = same[0]
    where = f"'{first.node.name}' ({origin_of(first.node)})"
    where += f" and {len(same) - 1} more" if len(same) > 1 else ""
    what = f"a constant, {first}, meets an axis of {first.size} channels at {where}"
    if not first.alike:
        return f"{what}, and another axis of that size that does not narrow alike: levels keep it"
    if scale:
        return f"{what}: every level computes with that of its own width"
    return f"{what}: levels keep it; constants='scale' makes it follow"
