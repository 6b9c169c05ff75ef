"""What levels cost and what they are worth, with a mark at those that cost more than another and give less."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from anytimeify.ir import Level
from anytimeify.report.curves import Point, draw
from anytimeify.report.figures import figure
from anytimeify.report.pareto import check_scores, dominated_by, remark
from anytimeify.report.tables import Table, in_percent

__all__ = ["CostRow", "cost_rows", "cost_table", "plot_costs"]


@dataclass(frozen=True)
class CostRow:
    """One level, with measured milliseconds and its accuracy where they are known. `dominated_by`: the name of a level
    that costs no more (milliseconds, or MACs) and gives no less (accuracy; or a later level)."""

    index: int
    name: str
    macs: int
    params: int
    activation_bytes: int
    training_only: bool
    latency_ms: float | None = None
    accuracy: float | None = None
    dominated_by: str | None = None

    def known(self) -> dict[str, Any]:
        """As JSON, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def cost_rows(
    levels: Sequence[Level], latency: Mapping[int, float], scores: Mapping[str, float] | None
) -> tuple[CostRow, ...]:
    """`latency`: milliseconds by index, of all levels or none. `scores`: accuracies by name, `ArgumentValueError` for
    that of what is no level."""
    check_scores(scores, [level.name for level in levels])
    rows = [
        CostRow(
            level.index,
            level.name,
            *level.cost,
            training_only=level.training_only,
            latency_ms=latency.get(level.index),
            accuracy=(scores or {}).get(level.name),
        )
        for level in levels
    ]
    usable = [row for row in rows if not row.training_only and (scores is None or row.accuracy is not None)]
    gains = None if scores is None else [row.accuracy or 0.0 for row in usable]
    for row, better in zip(usable, dominated_by([_cost(row) for row in usable], gains), strict=True):
        rows[row.index] = replace(row, dominated_by=None if better is None else usable[better].name)
    return tuple(rows)


def cost_table(rows: Sequence[CostRow]) -> Table:
    """All of it, one level a line."""
    measured, worth = (any(getattr(row, name) is not None for row in rows) for name in ("latency_ms", "accuracy"))
    columns = [">level", "name", ">MACs", ">parameters", ">activation bytes"]
    columns += [">latency, ms"] if measured else []
    columns += [">accuracy"] if worth else []
    marked = any(row.dominated_by for row in rows)
    return Table("", (*columns, *([""] if marked else [])), tuple(_cells(row, measured, worth, marked) for row in rows))


def plot_costs(path: str | os.PathLike[str], rows: Sequence[CostRow]) -> None:
    """Draws accuracy, or the number of the level, against milliseconds, or MACs where nothing was measured. Levels that
    others dominate are hollow. Raises as `Report.plot` does."""
    measured = any(row.latency_ms is not None for row in rows)
    worth = any(row.accuracy is not None for row in rows)
    shown = [row for row in rows if not row.training_only and (row.accuracy is not None or not worth)]
    with figure(path) as drawn:
        axes = drawn.add_subplot()
        draw(
            axes,
            [
                Point(_cost(row), 100 * (row.accuracy or 0.0) if worth else row.index, row.name, bool(row.dominated_by))
                for row in shown
            ],
        )
        axes.set_xlabel("measured milliseconds" if measured else "MACs of one sample")
        axes.set_ylabel("accuracy, %" if worth else "level")


def _cost(row: CostRow) -> float:
    return row.macs if row.latency_ms is None else row.latency_ms


def _cells(row: CostRow, measured: bool, worth: bool, marked: bool) -> tuple[str, ...]:
    name = f"{row.name}, training only" if row.training_only else row.name
    cells = [str(row.index), name, *(f"{number:,}" for number in (row.macs, row.params, row.activation_bytes))]
    cells += [f"{row.latency_ms:.3f}" if row.latency_ms is not None else ""] if measured else []
    cells += [in_percent(row.accuracy) if row.accuracy is not None else ""] if worth else []
    return (*cells, *([remark(row.dominated_by)] if marked else []))
