"""What of every axis each level of a model has."""

from __future__ import annotations

from torch import fx

from anytimeify.analysis.axes import Widths
from anytimeify.analysis.blocks import find_blocks
from anytimeify.runtime.model import AnytimeModel

__all__ = ["leaves_of_levels", "skipped_blocks", "widths_of_levels"]


def widths_of_levels(net: AnytimeModel) -> list[Widths]:
    """How much each level keeps of the axes that it narrows; nothing is narrowed by other schemes than widths."""
    kept = net.scheme.kept(net.axes)
    return [*kept, *({} for _ in range(len(net.levels) - len(kept)))]


def skipped_blocks(net: AnytimeModel) -> dict[fx.Node, fx.Node]:
    """The ends of the blocks that lower levels may skip, and what is read in place of each."""
    if not net.scheme.skips:
        return {}
    blocks = find_blocks(net.captured.program, net.axes).blocks
    return {block.end: block.start for block in blocks if block.start is not None}


def leaves_of_levels(net: AnytimeModel) -> list[int]:
    """How many leaves each level of an ensemble has; all of them in a level over all levels."""
    everything = len(net.rewritten.members)
    return [everything if level.number is None else int(level.number) for level in net.levels]
