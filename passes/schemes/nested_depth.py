"""Nested depth: lower levels skip repeated blocks of the full network, stage by stage.

The rewrite:

1. the full network stays as it is;
2. for every lower depth, of each run of equal blocks the last ones are left out, at least one staying; what lies before
   the first of them is computed once for all levels, what comes after is copied and reads the same parameters (of dense
   layers, the part that is left). Blocks are those between cut points where that tells the depths apart, else residual
   units, around which other tensors may go (`anytimeify.analysis.residual_units`);
3. with private norms, a normalisation after a block that is left out has parameters and statistics of its own per
   level, which start as the full ones.

Refused: networks in which no block can be left out, and depths that leave out the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NoReturn

from torch import fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.blocks import Block, find_blocks
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, names
from anytimeify.ir.rewritten import Output, Rewritten, numbered
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.rewrites.downstream import Downstream, has_layer
from anytimeify.passes.rewrites.narrow import Private, clone_region
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.skipped_blocks import SkippedBlocks
from anytimeify.passes.rewrites.taxonomy import coarse_heads
from anytimeify.passes.scheme import Scheme

__all__ = ["NestedDepth"]

_ROUND = (1.0, 0.5, 0.25, 0.75, 0.33, 0.67, 0.125, 0.875, 0.375, 0.625)


@dataclass(frozen=True)
class NestedDepth(Scheme):
    """Levels are depths: level k has a share `depths[k]` of every stage's blocks.

    Fields
        depths: shares of the blocks, increasing, the last one 1. A run of n equal blocks keeps about that share of
            them, and at least one, or none where another block of the stage stays. Beside widths, in a sequence of
            schemes, neighbours may be equal.
        norms: `"private"`: norms after a block that is left out have parameters and statistics of their own per level;
            `"shared"`: those of the full network.

    Raises `SchemeError` for fields out of range and for backbones without blocks that could be left out.
    """

    name: ClassVar[str] = "nested-depth"
    skips: ClassVar[bool] = True

    depths: tuple[float, ...] = (0.5, 1.0)
    norms: Literal["private", "shared"] = "private"

    def __post_init__(self) -> None:
        given: Any = self.depths
        depths = tuple(given) if isinstance(given, tuple | list) else (given,)
        numbers = all(isinstance(d, int | float) and not isinstance(d, bool) and 0 < d <= 1 for d in depths)
        if not depths or not numbers or list(depths) != sorted(depths) or depths[-1] != 1:
            self._refuse_order()
        object.__setattr__(self, "depths", tuple(float(depth) for depth in depths))
        if self.norms not in ("private", "shared"):
            raise SchemeError(f"norms={self.norms!r}: expected private or shared")

    def check_alone(self) -> None:
        if len(set(self.depths)) < len(self.depths):
            self._refuse_order()

    def _refuse_order(self) -> NoReturn:
        raise SchemeError(
            f"depths={_listed(self.depths)}: expected increasing numbers in (0, 1], the last one 1, such as 0.5,0.75,1"
        )

    @property
    def copies(self) -> int:
        return len(self.depths)

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        return self, ProgramSize(1, 1)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        downstream = Downstream.of(captured, axes, find_blocks(program, axes), program.placeholders)
        outputs: dict[Output, fx.Node] = {}
        for level, left_out in enumerate(self.left_out(downstream)[:-1]):
            outputs[Output("level", level)] = self._level(builder, downstream, left_out, level)
        outputs[Output("level", len(self.depths) - 1)] = builder.shared[program.outputs[0]]
        named = builder.build_named(outputs, program.graph.output_node())
        return Rewritten(*named, numbered("depth", self.depths), shared_norms=self.norms == "shared")

    def _level(self, builder: Builder, downstream: Downstream, left_out: list[Block], level: int) -> fx.Node:
        program = downstream.captured.program
        skipped = SkippedBlocks(left_out)
        private: Private = PrivateTensors(program, builder, level, coarse_heads(program), norms=self.norms == "private")
        env = clone_region(
            *(builder, program, downstream.axes, downstream.widths({}, left_out), skipped.after, skipped.instead),
            prefix=names.level_prefix(level),
            private=private,
        )
        return env[program.outputs[0]]

    def left_out(self, downstream: Downstream) -> list[list[Block]]:
        """The blocks that each level leaves out. Refuses two depths that leave out the same."""
        ways = list(zip(*map(downstream.shortenings, self.depths), strict=True))
        told_apart = (way for way in ways if self._same(way) is None)
        found = next(told_apart, None)
        if found is None:
            self._refuse(ways[0], downstream)
        return list(found)

    def _same(self, way: Sequence[list[Block]]) -> tuple[float, float] | None:
        """Two depths that leave out the same, the one to leave out first."""
        for (depth, other), (many, few) in zip(pairwise(self.depths), pairwise(way), strict=True):
            if depth != other and not _fewer_layers(many, few):
                return (other, depth) if few else (depth, other)
        return None

    def _refuse(self, way: Sequence[list[Block]], downstream: Downstream) -> NoReturn:
        depth, other = self._same(way) or (self.depths[0], 1.0)
        raise SchemeError(
            f"depths: depth {depth:g} leaves out the same blocks as {other:g}; {_depths_that_differ(downstream)}"
        )

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.joint import JointLoss

        return JointLoss()


def _fewer_layers(many: Sequence[Block], few: Sequence[Block]) -> bool:
    return any(has_layer(block) for block in many if block not in few)


def _depths_that_differ(downstream: Downstream) -> str:
    """The depths that this network can have, the roundest numbers of those that leave out the same, or why it has
    none."""
    most: list[float] = []
    for way in zip(*map(downstream.shortenings, _ROUND), strict=True):
        counts: dict[int, float] = {}
        for share, left_out in zip(_ROUND, way, strict=True):
            counts.setdefault(sum(map(has_layer, left_out)), share)
        most = max(most, sorted(counts.values()), key=len)
    if len(most) > 1:
        return f"depths that differ here: {', '.join(f'{share:g}' for share in most)}"
    count = len(downstream.units.units)
    why = (
        f"it has {count} residual unit{'s' * (count != 1)}, and no two of one kind"
        if count
        else "no part of it adds to what it reads"
    )
    return f"this network has 0 blocks that can be left out, because {why}; use another scheme"


def _listed(depths: Any) -> str:
    given = depths if isinstance(depths, tuple | list) else (depths,)
    return ",".join(f"{depth:g}" if isinstance(depth, int | float) else str(depth) for depth in given)
