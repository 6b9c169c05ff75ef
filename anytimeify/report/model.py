"""The report of an anytime model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from anytimeify.analysis.axes import Axes
from anytimeify.ir import Captured, Level
from anytimeify.ir.rewritten import Rewritten
from anytimeify.report.densities import DensityRow, density_rows, density_table
from anytimeify.report.graph import BlockPicture, block_pictures
from anytimeify.report.heads import HeadRow, head_rows, head_table
from anytimeify.report.held import HeldRow, held_rows, held_table
from anytimeify.report.levels import LevelRow, level_rows, level_table
from anytimeify.report.measured import Measured
from anytimeify.report.model_explorer import write_model_explorer
from anytimeify.report.page import write_page
from anytimeify.report.pareto import check_scores
from anytimeify.report.plot import plot
from anytimeify.report.rows import AxisRow, Place, Readers, axis_rows, axis_tables, note_tables, without_rule
from anytimeify.report.tables import Table, Tables
from anytimeify.taxonomy import Taxonomy

__all__ = ["LevelRow", "Report", "report"]


@dataclass(frozen=True)
class Report(Tables):
    """An anytime model: levels with their cost, axis groups with sites, roles and pins, notes of the capture."""

    scheme: str
    levels: tuple[LevelRow, ...]
    axes: tuple[AxisRow, ...]
    notes: tuple[str, ...]
    without_rule: tuple[Place, ...]
    densities: tuple[DensityRow, ...] = ()
    heads: tuple[HeadRow, ...] = ()  # with a taxonomy
    held: tuple[HeldRow, ...] = ()  # where the cheapest level costs its width or more
    blocks: tuple[BlockPicture, ...] = ()  # the graph of the backbone

    def plot(
        self,
        path: str | os.PathLike[str],
        scores: Mapping[str, float] | None = None,
        alone: Mapping[str, float] | None = None,
    ) -> None:
        """Draws the cost of every level and, with `scores` (accuracy from 0 to 1 by level name), accuracy against MACs;
        with `alone`, beside that of levels which were trained as networks of their own.

        The suffix of `path` chooses the format. Raises `MissingExtraError` without the extra `plot`, `ArtifactError`
        where the picture cannot be written, `ValueError` for a score of what is no level.
        """
        plot(path, {row.name: (row.macs, row.params) for row in self.levels}, scores or {}, alone or {})

    def to_html(
        self,
        path: str | os.PathLike[str],
        measured: Measured | None = None,
        accuracies: Mapping[str, float] | None = None,
    ) -> None:
        """Writes all of it into one HTML file, with the graph as blocks, latencies that were `measured`
        (`anytimeify.runtime.bench`), and accuracies by level name, where these have none. Raises `MissingExtraError`
        without the extra `report`, `ArtifactError` where the file cannot be written, `ArgumentValueError` for the
        accuracy of what is no level."""
        check_scores(accuracies, [level.name for level in self.levels])
        rest = [table for table in self.tables(everything=False) if table.rows and table.title != "Levels"]
        write_page(path, self.title(), self.levels, self.blocks, rest, measured, accuracies)

    def to_model_explorer(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes a folder for Google's Model Explorer: the graph, and files of node data to lay over it.
        `ArtifactError` where it exists, unless `force`."""
        write_model_explorer(path, self.scheme, len(self.levels), self.blocks, force=force)

    def title(self) -> str:
        return f"{self.scheme}: {len(self.levels)} levels"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        yield held_table(self.held, self.levels[0].share)
        yield level_table(self.levels)
        yield head_table(self.heads)
        yield density_table(self.densities)
        yield from axis_tables(self.axes, everything=everything)
        yield from note_tables(self.notes, self.without_rule)


class _Net(Protocol):
    """What a report reads of an `AnytimeModel`, which imports this module."""

    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def full(self) -> int: ...
    @property
    def axes(self) -> Axes: ...
    @property
    def captured(self) -> Captured: ...
    @property
    def rewritten(self) -> Rewritten: ...
    @property
    def scheme(self) -> object: ...
    @property
    def taxonomy(self) -> Taxonomy | None: ...


def report(net: _Net) -> Report:
    """The report of an `AnytimeModel`."""
    captured, rewritten = net.captured, net.rewritten
    # Of tensors that hold several members a level reads as many as it has, which says nothing of widths.
    readers = (
        []
        if rewritten.stacked_parameters
        else [Readers(rewritten.program, level.index, rewritten.position(level.index)) for level in net.levels]
    )
    rows = axis_rows(captured, net.axes, readers)
    return Report(
        scheme=str(net.scheme),
        levels=level_rows(net.levels, net.full),
        axes=rows,
        notes=(*captured.notes, *rewritten.notes),
        without_rule=without_rule(net.axes),
        densities=density_rows(rewritten.program, len(net.levels)),
        heads=head_rows(captured, rewritten, net.taxonomy),
        held=held_rows(captured, net.axes, rows, net.levels, rewritten.levels),
        blocks=block_pictures(captured, net.axes, rewritten, net.levels, net.full, rows),
    )
