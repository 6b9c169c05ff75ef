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

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, fx

from anytimeify.analysis.axes import Axes
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, names
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.resized_inputs import ResizedClone
from anytimeify.passes.schemes.beside_widths import BesideWidths
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_resolution import NestedResolution

__all__ = ["ResolutionAndWidth"]


@dataclass(frozen=True)
class ResolutionAndWidth(BesideWidths):
    """What `transform(model, (NestedResolution(...), NestedChannels(...)))` applies. Raises `SchemeError` where the
    levels of the two do not pair up."""

    name: ClassVar[str] = "nested-resolution nested-channels"

    resolution: NestedResolution
    channels: NestedChannels

    def __post_init__(self) -> None:
        self.check_pairs(self.resolution, "size", self.resolution.sizes, "levels see different inputs")

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
            clone = ResizedClone(builder, program, axes, smaller, widths, prefix, own, self.resolution.mode)
            clone.reached = clone.reached | computed
            outputs[Output("level", level)] = clone.run()[program.outputs[0]]
        full = len(self.channels.widths) - 1
        outputs[Output("level", full)] = builder.shared[program.outputs[0]]
        named = builder.build_named(outputs, program.graph.output_node())
        return Rewritten(
            *named, self.described("size", self.resolution.sizes), notes=self.resolution.notes(captured, axes)
        )

    def on_other_inputs(self, captured: Captured, axes: Axes) -> Iterator[tuple[str, Program, tuple[Tensor, ...]]]:
        sizes = tuple(dict.fromkeys(self.resolution.sizes))  # at full width: neighbours may be equal beside widths
        return replace(self.resolution, sizes=sizes).on_other_inputs(captured, axes)
