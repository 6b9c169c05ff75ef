"""Nested depth: lower levels skip repeated blocks of the full network, stage by stage.

The rewrite:

1. the full network stays as it is;
2. for every lower depth, of each run of equal blocks the last ones are left out, at least one staying; what lies before
   the first of them is computed once for all levels, what lies behind is copied and reads the same parameters (of dense
   layers, the part that is left);
3. with private norms, a normalisation behind a block that is left out has parameters and statistics of its own per
   level, which start as the full ones.

Refused: networks in which no block can be left out, and depths that leave out the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import fx, nn

from anytimeify.axes import Axes
from anytimeify.blocks import Block, find_blocks
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Program, Rewritten
from anytimeify.passes.narrow import Builder, Private
from anytimeify.passes.nested_channels import PrivateTensors
from anytimeify.passes.rest import Rest
from anytimeify.rewriter import Scheme

__all__ = ["NestedDepth"]


@dataclass(frozen=True)
class NestedDepth(Scheme):
    """Levels are depths: level k has a share `depths[k]` of every stage's blocks.

    Fields
        depths: shares of the blocks, increasing, the last one 1. A run of n equal blocks keeps about that share of
            them, and at least one, or none where another block of the stage stays.
        norms: `"private"`: norms behind a block that is left out have parameters and statistics of their own per level;
            `"shared"`: those of the full network.

    Raises `SchemeError` for fields out of range and for backbones without blocks that could be left out.
    """

    name: ClassVar[str] = "nested-depth"

    depths: tuple[float, ...] = (0.5, 1.0)
    norms: Literal["private", "shared"] = "private"

    def __post_init__(self) -> None:
        given: Any = self.depths
        depths = tuple(given) if isinstance(given, tuple | list) else (given,)
        numbers = all(isinstance(d, int | float) and not isinstance(d, bool) and 0 < d <= 1 for d in depths)
        if not depths or not numbers or list(depths) != sorted(set(depths)) or depths[-1] != 1:
            raise SchemeError(
                f"depths={given!r}: expected increasing numbers in (0, 1], the last one 1, such as 0.5,0.75,1"
            )
        object.__setattr__(self, "depths", tuple(float(depth) for depth in depths))
        if self.norms not in ("private", "shared"):
            raise SchemeError(f"norms={self.norms!r}: expected private or shared")

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        rest = Rest.behind(captured, axes, find_blocks(program, axes), program.placeholders)
        outputs: list[fx.Node] = []
        before = len(rest.blocks) + 1
        for level, depth in enumerate(self.depths[:-1]):
            left_out = rest.shortened(depth)
            if not left_out or len(left_out) == before:
                self._refuse(depth, self.depths[level - 1] if left_out else 1.0, rest)
            before = len(left_out)
            outputs.append(self._level(builder, rest, left_out, level))
        outputs.append(builder.shared[program.outputs[0]])
        names = tuple(f"depth {depth:g}" for depth in self.depths)
        return Rewritten(builder.build(outputs, program.graph.output_node()), names)

    def _level(self, builder: Builder, rest: Rest, left_out: list[Block], level: int) -> fx.Node:
        program = rest.captured.program
        removed = {node for block in left_out for node in block.nodes}
        region = _behind(program, {block.end for block in left_out}) - removed
        instead = {block.end: block.start for block in left_out if block.start is not None}
        private: Private = PrivateTensors(program, builder, level, set(), norms=self.norms == "private")
        env = builder.clone_region(
            program, rest.axes, rest.widths({}, left_out), region, instead, prefix=f"level{level}_", private=private
        )
        return env[program.outputs[0]]

    def _refuse(self, depth: float, other: float, rest: Rest) -> None:
        count = len(rest.removable())
        raise SchemeError(
            f"depths: depth {depth:g} leaves out the same blocks as {other:g}; leave one of them out. This network has "
            f"{count} block{'s' * (count != 1)} that can be left out"
        )

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.joint import JointLoss

        return JointLoss()


def _behind(program: Program, ends: set[fx.Node]) -> set[fx.Node]:
    """The calls that depend on some nodes, these among them."""
    found = set(ends)
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
