"""Nested depth and nested channels together: level k is as deep as `depths[k]` says and as wide as `widths[k]`.

The rewrite:

1. the full network stays as it is;
2. for every lower level the graph is cloned once, its blocks left out as `NestedDepth` leaves them out and its axes cut
   as `NestedChannels` cuts them; what neither a gap nor a narrowed axis reaches is computed once for all levels;
3. a normalisation has parameters and statistics of its own per level where a narrowed axis reaches it and the norms of
   the channels are private, or where it lies behind a gap and those of the depth are; they start as the prefix of the
   full ones. Private heads are the channels' field too.

Refused: different numbers of levels, levels that are no larger than the one before, triangular connectivity, and what
either scheme refuses: depths that leave out the same blocks, widths that keep the same channels.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import fx, nn

from anytimeify import names
from anytimeify.axes import Axes, Widths
from anytimeify.blocks import Block, find_blocks
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.passes.narrow import Builder, reached
from anytimeify.passes.nested_channels import NestedChannels, PrivateTensors
from anytimeify.passes.nested_depth import Gap, NestedDepth
from anytimeify.passes.rest import Rest
from anytimeify.rewriter import Composed
from anytimeify.rewritten import LevelData, Output, Rewritten

__all__ = ["DepthAndWidth"]


@dataclass(frozen=True)
class DepthAndWidth(Composed):
    """What `transform(model, (NestedDepth(...), NestedChannels(...)))` applies. Raises `SchemeError` where the levels
    of the two do not pair up."""

    name: ClassVar[str] = "nested-depth nested-channels"
    skips: ClassVar[bool] = True

    depth: NestedDepth
    channels: NestedChannels

    def __post_init__(self) -> None:
        depths, widths = self.depth.depths, self.channels.widths
        if len(depths) != len(widths):
            raise SchemeError(
                f"depths has {len(depths)} levels and widths {len(widths)}: level k has the k-th of both, so give as "
                "many of one as of the other, such as depths=0.5,0.5,1 and widths=0.5,1,1"
            )
        if self.channels.connectivity != "dense":
            raise SchemeError(
                f"connectivity={self.channels.connectivity!r}: together with nested-depth it has to be 'dense', for a "
                "level that skips blocks is no part of the one above"
            )
        for level, (one, other) in enumerate(pairwise(zip(depths, widths, strict=True))):
            if one == other:
                raise SchemeError(
                    f"levels {level} and {level + 1} both have depth {one[0]:g} and width {one[1]:g}; leave one out"
                )

    @property
    def narrowed(self) -> str | tuple[str, ...]:
        return self.channels.where

    def kept(self, axes: Axes) -> list[Widths]:
        return self.channels.kept(axes)

    def prepare(self, captured: Captured, axes: Axes) -> Captured:
        return self.channels.prepare(captured, axes)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        rest = Rest.behind(captured, axes, find_blocks(program, axes), program.placeholders)
        heads = self.channels.private_heads(program)
        levels = list(zip(self.depth.left_out(rest), self.channels.kept(axes), strict=True))
        outputs: dict[Output, fx.Node] = {}
        for level, (left_out, widths) in enumerate(levels[:-1]):
            outputs[Output("level", level)] = self._level(builder, rest, left_out, widths, level, heads)
        full = len(levels) - 1
        outputs[Output("level", full)] = builder.shared[program.outputs[0]]
        pairs = zip(self.depth.depths, self.channels.widths, strict=True)
        described = [
            LevelData(f"depth {depth:g}, width {width:g}", backbone=0 if level == full else None)
            for level, (depth, width) in enumerate(pairs)
        ]
        return Rewritten(*builder.build_named(outputs, program.graph.output_node()), tuple(described))

    def _level(
        self, builder: Builder, rest: Rest, left_out: list[Block], widths: Widths, level: int, heads: Set[fx.Node]
    ) -> fx.Node:
        program = rest.captured.program
        gap = Gap.of(program, left_out)
        narrow = reached(program, rest.axes, widths) - gap.removed
        norms: set[fx.Node] = set()
        if self.channels.norms != "shared":
            norms |= narrow
        if self.depth.norms == "private":
            norms |= gap.behind
        own = PrivateTensors(program, builder, level, heads, norms=True)
        computed = {node for node in heads if node.op == "call_function"}  # of the tensors of private heads

        def private(user: fx.Node, source: fx.Node, region: Set[fx.Node]) -> str | None:
            return own(user, source, norms)

        env = builder.clone_region(
            *(program, rest.axes, rest.widths({}, left_out, widths), narrow | gap.behind | computed, gap.instead),
            prefix=names.level_prefix(level),
            private=private,
        )
        return env[program.outputs[0]]

    def default_loss(self) -> nn.Module:
        return self.channels.default_loss()
