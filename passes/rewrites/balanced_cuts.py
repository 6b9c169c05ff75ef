"""Cuts of an ensemble: between them a network costs about the same, and every part that is copied costs something."""

from __future__ import annotations

from itertools import chain, pairwise

from torch import fx

from anytimeify.analysis.blocks import Blocks
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.passes.rewrites.cuts import Cut, candidates, even_cuts, owns_parameters
from anytimeify.passes.rewrites.forks import even_forks
from anytimeify.passes.rewrites.replicate import depths

__all__ = ["balanced_cuts"]


def balanced_cuts(captured: Captured, blocks: Blocks, count: int) -> list[Cut]:
    """Cuts after stages if enough of them end, else after blocks, else where few tensors carry all data, else where the
    fewest pass. `SchemeError` where no such cuts have something to copy after each of them."""
    anywhere = ([fork.passing for fork in even_forks(captured, count, within=within)] for within in (0.4, count + 1))
    for cuts in chain(even_cuts(captured, blocks, count), anywhere):
        if len(cuts) == count and _parts_differ(captured, cuts):
            return cuts
    places = len(candidates(captured, blocks))
    raise SchemeError(
        f"depth={count}: this network has {places} places to cut it at with parameters behind each, too few; "
        "choose a smaller depth, or name cuts"
    )


def _parts_differ(captured: Captured, cuts: list[Cut]) -> bool:
    """Whether every part has parameters, and costs something where anything does."""
    macs = macs_by_node(captured.program, captured.batch, *sizes(captured))
    after = [_after(captured, cut) for cut in cuts]
    parts = [*(one - other for one, other in pairwise(after)), after[-1]]
    total = sum(macs.values())
    return all(
        owns_parameters(captured.program, part) and (not total or any(macs.get(node, 0) for node in part))
        for part in parts
    )


def _after(captured: Captured, cut: Cut) -> set[fx.Node]:
    return {node for node, depth in depths(captured.program, [cut]).items() if depth and node.op == "call_function"}
