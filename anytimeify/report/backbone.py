"""What a backbone offers to a scheme: axes, pins, cut points, blocks and stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.blocks import Blocks, find_blocks
from anytimeify.analysis.cost import cost, sizes
from anytimeify.ir import Captured, Level
from anytimeify.report.levels import LevelRow, level_rows, level_table
from anytimeify.report.rows import AxisRow, Place, axis_rows, axis_tables, note_tables, pinned_macs, without_rule
from anytimeify.report.tables import Table, Tables, in_bytes, in_percent, shortened

__all__ = ["BlockRow", "Inspection", "StageRow", "inspect"]


@dataclass(frozen=True)
class BlockRow:
    """Neighbouring blocks of one structure: `count` of them, from the node `start` to the node `end`."""

    start: str
    end: str
    count: int
    kind: int


@dataclass(frozen=True)
class StageRow:
    """A run of blocks at one resolution."""

    positions: int
    blocks: tuple[BlockRow, ...]


@dataclass(frozen=True)
class Inspection(Tables):
    """A backbone: what may be narrowed and what not and why, where it can be cut, and what it repeats."""

    name: str
    inputs: tuple[str, ...]
    macs: int
    params: int
    activation_bytes: int
    axes: tuple[AxisRow, ...]
    pinned: tuple[tuple[Place, float], ...]  # operations with MACs but without an axis to narrow: why, and their share
    cut_points: tuple[str, ...]
    stages: tuple[StageRow, ...]
    notes: tuple[str, ...]
    without_rule: tuple[Place, ...]
    levels: tuple[LevelRow, ...] = ()  # that a scheme would make

    def with_levels(self, levels: Sequence[Level], full: int) -> Inspection:
        """With the levels that a scheme would make, of which `full` equals the backbone."""
        return replace(self, levels=level_rows(levels, full))

    @property
    def pinned_share(self) -> float:
        """The part of the MACs that no width changes."""
        return sum(share for _, share in self.pinned)

    def title(self) -> str:
        costs = (
            f"{shortened(self.macs)} MACs, {shortened(self.params)} parameters, {in_bytes(self.activation_bytes)} of"
        )
        pinned = f"{in_percent(self.pinned_share)} of the MACs pinned"
        return f"{self.name} on {', '.join(self.inputs)}: {costs} activations a sample; {pinned}"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        yield level_table(self.levels)
        yield from axis_tables(self.axes, everything=everything)
        yield Table(
            "MACs without an axis to narrow",
            (">share", "why", "operation", "where"),
            tuple((in_percent(share), place.reason, place.operation, place.origin) for place, share in self.pinned),
        )
        blocks = sum(row.count for stage in self.stages for row in stage.blocks)
        yield Table(
            f"{len(self.cut_points)} cut points, {blocks} blocks, {len(self.stages)} stages",
            (">stage", ">positions", ">blocks", ">kind", "from", "to"),
            tuple(
                (str(index), str(stage.positions), str(row.count), str(row.kind), row.start, row.end)
                for index, stage in enumerate(self.stages)
                for row in stage.blocks
            ),
        )
        if everything:
            yield Table("Cut points", ("node",), tuple((name,) for name in self.cut_points))
        yield from note_tables(self.notes, self.without_rule)


def inspect(captured: Captured, axes: Axes, name: str = "backbone") -> Inspection:
    """What `captured` offers to a scheme."""
    blocks = find_blocks(captured.program, axes)
    total = cost(captured.program, captured.batch, *sizes(captured))
    return Inspection(
        name=name,
        inputs=tuple("x".join(map(str, tensor.shape)) for tensor in captured.example_inputs),
        macs=total.macs,
        params=total.params,
        activation_bytes=total.activation_bytes,
        axes=axis_rows(captured, axes),
        pinned=pinned_macs(captured, axes),
        cut_points=tuple(node.name for node in blocks.cut_points),
        stages=_stage_rows(blocks),
        notes=captured.notes,
        without_rule=without_rule(axes),
    )


def _stage_rows(blocks: Blocks) -> tuple[StageRow, ...]:
    stages = []
    for stage in blocks.stages:
        rows: list[BlockRow] = []
        for block in stage.blocks:
            start, end = block.start.name if block.start is not None else "the inputs", block.end.name
            if rows and rows[-1].kind == block.kind:
                rows[-1] = BlockRow(rows[-1].start, end, rows[-1].count + 1, block.kind)
            else:
                rows.append(BlockRow(start, end, 1, block.kind))
        stages.append(StageRow(stage.positions, tuple(rows)))
    return tuple(stages)
