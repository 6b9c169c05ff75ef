"""Levels with their costs: those that a model has, and those that a scheme would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytimeify.ir import Level
from anytimeify.report.tables import Table, in_bytes, in_percent, shortened

__all__ = ["LevelRow", "level_rows", "level_table"]


@dataclass(frozen=True)
class LevelRow:
    """One level. `share`: its MACs as a part of those of the full level."""

    index: int
    name: str
    macs: int
    params: int
    activation_bytes: int
    share: float
    training_only: bool


def level_rows(levels: Sequence[Level], full: int) -> tuple[LevelRow, ...]:
    """`full`: the position of the level that equals the backbone."""
    macs = max(1, levels[full].cost.macs)
    return tuple(
        LevelRow(level.index, level.name, *level.cost, level.cost.macs / macs, level.training_only) for level in levels
    )


def level_table(rows: Sequence[LevelRow]) -> Table:
    """Levels, cheapest first."""
    return Table(
        "Levels",
        (">level", "name", ">MACs", ">share", ">parameters", ">activations", ""),
        tuple(
            (
                *(str(row.index), row.name, shortened(row.macs), in_percent(row.share)),
                *(shortened(row.params), in_bytes(row.activation_bytes), "training only" if row.training_only else ""),
            )
            for row in rows
        ),
    )
