"""Nested resolution and nested channels together: level k sees a smaller input, through fewer channels.

    level of size 0.5, width 0.25:   x -> resize -> the backbone with a quarter of its channels -> classes

The rewrite:

1. the full network stays as it is;
2. for every lower level the inputs are resized and the network is copied after them, its axes cut as `NestedChannels`
   cuts them;
3. levels have norms of their own if either scheme has them private, and heads of their own if the channels have.

Refused: different numbers of levels, levels that are no larger than the one before, triangular connectivity, and what
either scheme refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import fx, nn

from anytimeify import names
from anytimeify.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.passes.narrow import Builder
from anytimeify.passes.nested_channels import NestedChannels, PrivateTensors
from anytimeify.passes.nested_resolution import NestedResolution, Resized
from anytimeify.rewriter import Composed
from anytimeify.rewritten import LevelData, Output, Rewritten

__all__ = ["ResolutionAndWidth"]


@dataclass(frozen=True)
class ResolutionAndWidth(Composed):
    """What `transform(model, (NestedResolution(...), NestedChannels(...)))` applies. Raises `SchemeError` where the
    levels of the two do not pair up."""

    name: ClassVar[str] = "nested-resolution nested-channels"

    resolution: NestedResolution
    channels: NestedChannels

    def __post_init__(self) -> None:
        sizes, widths = self.resolution.sizes, self.channels.widths
        if len(sizes) != len(widths):
            raise SchemeError(
                f"sizes has {len(sizes)} levels and widths {len(widths)}: level k has the k-th of both, so give as "
                "many of one as of the other, such as sizes=0.5,0.5,1 and widths=0.5,1,1"
            )
        if self.channels.connectivity != "dense":
            raise SchemeError(
                f"connectivity={self.channels.connectivity!r}: together with nested-resolution it has to be 'dense', "
                "for levels see different inputs"
            )
        for level, (one, other) in enumerate(pairwise(zip(sizes, widths, strict=True))):
            if one == other:
                raise SchemeError(
                    f"levels {level} and {level + 1} both have size {one[0]:g} and width {one[1]:g}; leave one out"
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
        heads = self.channels.private_heads(program)
        computed = {node for node in heads if node.op == "call_function"}  # of the tensors of private heads
        norms = self.channels.norms != "shared" or self.resolution.norms == "private"
        outputs: dict[Output, fx.Node] = {}
        levels = zip(self.resolution.levels(captured, axes)[:-1], self.channels.kept(axes), strict=False)
        for level, (smaller, widths) in enumerate(levels):
            own = PrivateTensors(program, builder, level, heads, norms=norms)
            prefix = names.level_prefix(level)
            clone = Resized(builder, program, axes, smaller, widths, prefix, own, self.resolution.mode)
            clone.reached = clone.reached | computed
            outputs[Output("level", level)] = clone.run()[program.outputs[0]]
        full = len(self.channels.widths) - 1
        outputs[Output("level", full)] = builder.shared[program.outputs[0]]
        pairs = zip(self.resolution.sizes, self.channels.widths, strict=True)
        described = [
            LevelData(f"size {size:g}, width {width:g}", backbone=0 if level == full else None)
            for level, (size, width) in enumerate(pairs)
        ]
        return Rewritten(*builder.build_named(outputs, program.graph.output_node()), tuple(described))

    def default_loss(self) -> nn.Module:
        return self.channels.default_loss()
