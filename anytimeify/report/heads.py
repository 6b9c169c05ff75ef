"""What every level of a model with a taxonomy predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytimeify.analysis.cost import cost, sizes
from anytimeify.ir import Captured
from anytimeify.ir.rewritten import Rewritten
from anytimeify.passes.rewrites.project import project
from anytimeify.report.tables import Table, shortened
from anytimeify.taxonomy import Taxonomy

__all__ = ["HeadRow", "head_rows", "head_table"]


@dataclass(frozen=True)
class HeadRow:
    """One granularity of one level. `macs`, `params`: of the whole level where it gives this prediction alone."""

    level: int
    granularity: str
    classes: int
    macs: int
    params: int
    served: bool


def head_rows(captured: Captured, rewritten: Rewritten, taxonomy: Taxonomy | None) -> tuple[HeadRow, ...]:
    """Every granularity of every level, finest first; nothing without a taxonomy."""
    if taxonomy is None:
        return ()
    rows = []
    for level, data in enumerate(rewritten.levels):
        for place in rewritten.granularities("level", level):
            program = project(rewritten.program, [rewritten.position(level, place)])
            macs, params, _ = cost(program, captured.batch, *sizes(captured))
            name, classes = taxonomy.granularities[place], taxonomy.sizes[place]
            rows.append(HeadRow(level, name, classes, macs, params, place == data.served))
    return tuple(rows)


def head_table(rows: Sequence[HeadRow]) -> Table:
    """The rows as a table."""
    return Table(
        "Predictions",
        (">level", "granularity", ">classes", ">MACs", ">parameters", ""),
        tuple(
            (
                *(str(row.level), row.granularity, str(row.classes), shortened(row.macs), shortened(row.params)),
                "served" if row.served else "",
            )
            for row in rows
        ),
    )
