"""Nested depth and nested channels together: level k is as deep as `depths[k]` says and as wide as `widths[k]`.

The rewrite:

1. the full network stays as it is;
2. for every lower level the graph is cloned once, its blocks left out as `NestedDepth` leaves them out and its axes cut
   as `NestedChannels` cuts them; what neither a gap nor a narrowed axis reaches is computed once for all levels;
3. a normalisation has parameters and statistics of its own per level where a narrowed axis reaches it and the norms of
   the channels are private, or where it comes after a gap and those of the depth are; they start as the prefix of the
   full ones. Private heads are the channels' field too.

Refused: different numbers of levels, levels that are no larger than the one before, triangular connectivity, and what
either scheme refuses: depths that leave out the same blocks, widths that keep the same channels.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.blocks import Block, find_blocks
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, names
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.passes.rewrites.downstream import Downstream
from anytimeify.passes.rewrites.narrow import clone_region, reached
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.skipped_blocks import SkippedBlocks
from anytimeify.passes.schemes.beside_widths import BesideWidths
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_depth import NestedDepth

__all__ = ["DepthAndWidth"]


@dataclass(frozen=True)
class DepthAndWidth(BesideWidths):
    """What `transform(model, (NestedDepth(...), NestedChannels(...)))` applies. Raises `SchemeError` where the levels
    of the two do not pair up."""

    name: ClassVar[str] = "nested-depth nested-channels"
    skips: ClassVar[bool] = True

    depth: NestedDepth
    channels: NestedChannels

    def __post_init__(self) -> None:
        self.check_pairs(
            self.depth, "depth", self.depth.depths, "a level that skips blocks is no part of the one above"
        )

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        downstream = Downstream.of(captured, axes, find_blocks(program, axes), program.placeholders)
        heads = self.channels.private_heads(program)
        levels = list(zip(self.depth.left_out(downstream), self.channels.kept(axes), strict=True))
        outputs: dict[Output, fx.Node] = {}
        for level, (left_out, widths) in enumerate(levels[:-1]):
            outputs[Output("level", level)] = self._level(builder, downstream, left_out, widths, level, heads)
        full = len(levels) - 1
        outputs[Output("level", full)] = builder.shared[program.outputs[0]]
        named = builder.build_named(outputs, program.graph.output_node())
        return Rewritten(*named, self.described("depth", self.depth.depths))

    def _level(
        self,
        builder: Builder,
        downstream: Downstream,
        left_out: list[Block],
        widths: Widths,
        level: int,
        heads: Set[fx.Node],
    ) -> fx.Node:
        program = downstream.captured.program
        skipped = SkippedBlocks(left_out)
        narrow = reached(program, downstream.axes, widths) - skipped.removed
        norms: set[fx.Node] = set()
        if self.channels.norms != "shared":
            norms |= narrow
        if self.depth.norms == "private":
            norms |= skipped.after
        own = PrivateTensors(program, builder, level, heads, norms=True)
        computed = {node for node in heads if node.op == "call_function"}  # of the tensors of private heads

        def private(user: fx.Node, source: fx.Node, region: Set[fx.Node]) -> str | None:
            return own(user, source, norms)

        env = clone_region(
            *(
                builder,
                program,
                downstream.axes,
                downstream.widths({}, left_out, widths),
                narrow | skipped.after | computed,
                skipped.instead,
            ),
            prefix=names.level_prefix(level),
            private=private,
        )
        return env[program.outputs[0]]
