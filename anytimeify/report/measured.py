"""What levels take where they run, beside their own extracts and with what they are worth."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytimeify.measure.timing import Timing
from anytimeify.report.curves import Point, draw
from anytimeify.report.figures import figure
from anytimeify.report.pareto import check_scores, dominated_by, remark
from anytimeify.report.tables import Table, Tables, in_percent, shortened

__all__ = ["Measured", "MeasuredRow", "judged"]


@dataclass(frozen=True)
class MeasuredRow:
    """One level at one size of the batch. `extract`: the same level alone; None where it is not known. `dominated_by`:
    the name of a level that costs no more milliseconds and gives no less accuracy; without accuracies, of a later
    one."""

    level: int
    name: str
    macs: int
    batch_size: int
    timing: Timing
    extract: Timing | None = None
    accuracy: float | None = None
    dominated_by: str | None = None

    @property
    def ratio(self) -> float | None:
        """The level's milliseconds over those of its extract."""
        return None if self.extract is None else self.timing.median_ms / self.extract.median_ms


@dataclass(frozen=True)
class Measured(Tables):
    """Latencies of levels. `form`: what ran: the file, or `extracts`; `threads`: None for the runtime's own choice."""

    form: str
    scheme: str
    runtime: str
    device: str
    threads: int | None
    rows: tuple[MeasuredRow, ...]

    def title(self) -> str:
        threads = "its own choice of threads" if self.threads is None else f"{self.threads} threads"
        return f"{self.form}: {self.scheme}, in {self.runtime} on {self.device}, {threads}"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        alone, worth = any(row.extract for row in self.rows), any(row.accuracy is not None for row in self.rows)
        columns = [">level", "name", ">MACs", ">batch", ">median, ms", ">p99, ms", ">runs"]
        columns += [">alone, ms", ">ratio"] if alone else []
        columns += [">accuracy"] if worth else []
        yield Table("Latency", (*columns, ""), tuple(_cells(row, alone, worth) for row in self.rows))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws accuracy against measured milliseconds, or milliseconds by level without accuracies, a line for each
        batch size. Levels that others dominate are hollow. The suffix of `path` chooses the format. Raises as
        `Report.plot` does."""
        worth = any(row.accuracy is not None for row in self.rows)
        with figure(path) as drawn:
            axes = drawn.add_subplot()
            sizes = list(dict.fromkeys(row.batch_size for row in self.rows))
            for size in sizes:
                rows = [row for row in self.rows if row.batch_size == size]
                label = f"batch of {size}"
                if worth:
                    draw(axes, [_point(row) for row in rows if row.accuracy is not None], label)
                else:
                    _draw_latency(axes, rows, label)
            axes.set_xlabel("measured milliseconds" if worth else "level")
            axes.set_ylabel("accuracy, %" if worth else "ms, up to the 99th percentile")
            if len(sizes) > 1:
                axes.legend(frameon=False)
            axes.set_title(f"{self.runtime}, {self.device}", fontsize=8)


def judged(rows: Sequence[MeasuredRow], accuracies: Mapping[str, float] | None) -> tuple[MeasuredRow, ...]:
    """Rows with accuracies by level name, and with what dominates them among those of their batch size.
    `ArgumentValueError` for an accuracy of what is no level; levels without one are not judged."""
    check_scores(accuracies, list(dict.fromkeys(row.name for row in rows)))
    result = list(rows)
    for size in dict.fromkeys(row.batch_size for row in rows):
        places = [
            place
            for place, row in enumerate(rows)
            if row.batch_size == size and (accuracies is None or row.name in accuracies)
        ]
        gains = None if accuracies is None else [accuracies[rows[place].name] for place in places]
        found = dominated_by([rows[place].timing.median_ms for place in places], gains)
        for number, (place, better) in enumerate(zip(places, found, strict=True)):
            result[place] = replace(
                rows[place],
                accuracy=None if gains is None else gains[number],
                dominated_by=None if better is None else rows[places[better]].name,
            )
    return tuple(result)


def _cells(row: MeasuredRow, alone: bool, worth: bool) -> tuple[str, ...]:
    cells = [str(row.level), row.name, shortened(row.macs), str(row.batch_size)]
    cells += [_ms(row.timing.median_ms), _ms(row.timing.p99_ms), str(row.timing.runs)]
    if alone:
        cells += ["", ""] if row.extract is None else [_ms(row.extract.median_ms), f"{row.ratio:.2f}"]
    if worth:
        cells += ["" if row.accuracy is None else in_percent(row.accuracy)]
    return (*cells, remark(row.dominated_by))


def _ms(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _point(row: MeasuredRow) -> Point:
    return Point(row.timing.median_ms, 100 * (row.accuracy or 0.0), row.name, row.dominated_by is not None)


def _draw_latency(axes: Any, rows: Sequence[MeasuredRow], label: str) -> None:
    places = [row.level for row in rows]
    medians = [row.timing.median_ms for row in rows]
    above = [max(0.0, row.timing.p99_ms - row.timing.median_ms) for row in rows]
    axes.errorbar(places, medians, [[0.0] * len(rows), above], marker="o", capsize=3, label=label)
    axes.set_xticks(places, [row.name for row in rows])
    axes.grid(alpha=0.3)
