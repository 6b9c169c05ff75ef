"""Where blocks are left out: what is read in place of what they give, and what depends on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from anytimeify.analysis.blocks import Block
from anytimeify.graph.traversal import descendants

__all__ = ["SkippedBlocks"]


@dataclass(frozen=True)
class SkippedBlocks:
    """Blocks that a level leaves out."""

    blocks: Sequence[Block]

    @cached_property
    def removed(self) -> frozenset[fx.Node]:
        """The nodes of the blocks."""
        return frozenset(node for block in self.blocks for node in block.nodes)

    @cached_property
    def instead(self) -> Mapping[fx.Node, fx.Node]:
        """What is read in place of the end of a block: its start. In place of a sum beside it: what it adds to."""
        ends = {block.end: block.start for block in self.blocks if block.start is not None}
        return ends | {end: start for block in self.blocks for start, end in block.beside}

    @cached_property
    def after(self) -> Set[fx.Node]:
        """The calls that stay and depend on a block."""
        return descendants(self.instead) - self.removed
