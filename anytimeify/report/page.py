"""A report as one HTML file that needs nothing else: no scripts, fonts or pictures from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from anytimeify.errors import MissingExtraError
from anytimeify.io.files import replaced_file
from anytimeify.report.drawing import draw
from anytimeify.report.graph import BlockPicture
from anytimeify.report.levels import LevelRow
from anytimeify.report.measured import Measured, MeasuredRow
from anytimeify.report.pareto import remark
from anytimeify.report.tables import Table, in_bytes, in_percent, shortened
from anytimeify.version import __version__

__all__ = ["require_page", "write_page"]


def write_page(
    path: str | os.PathLike[str],
    title: str,
    levels: Sequence[LevelRow],
    blocks: Sequence[BlockPicture],
    tables: Sequence[Table],
    measured: Measured | None,
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Writes the file, with whatever tables there are besides the levels, and replaces one that is there. `accuracies`
    by level name, where what was `measured` has none. `MissingExtraError` without Jinja2, `ArtifactError` where the
    file cannot be written."""
    require_page()
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"short": shortened, "percent": in_percent, "bytes": in_bytes, "kept": _kept}
    template = environment.from_string(files("anytimeify.report").joinpath("page.html").read_text(encoding="utf-8"))
    rows = () if measured is None else measured.rows
    text = template.render(
        title=title,
        levels=levels,
        drawing=draw(blocks, len(levels)),
        tables=tables,
        measured=_columns(rows, accuracies or {}),
        remarks={row.name: remark(row.dominated_by) for row in rows},
        where="" if measured is None else f"{measured.form} in {measured.runtime} on {measured.device}",
        version=__version__,
    )
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_page() -> None:
    """Raises `MissingExtraError` unless Jinja2 is installed."""
    try:
        import jinja2  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "Writing a report as HTML") from error


def _columns(rows: Sequence[MeasuredRow], accuracies: Mapping[str, float]) -> list[dict[str, Any]]:
    """Milliseconds at each size of the batch, and accuracies where they are known."""
    columns = [
        {
            "title": f"ms, batch of {size}",
            "cells": {row.name: f"{row.timing.median_ms:.3g}" for row in rows if row.batch_size == size},
        }
        for size in dict.fromkeys(row.batch_size for row in rows)
    ]
    known = {**accuracies, **{row.name: row.accuracy for row in rows if row.accuracy is not None}}
    scores = {name: in_percent(accuracy) for name, accuracy in known.items()}
    return [*columns, *([{"title": "accuracy", "cells": scores}] if scores else [])]


def _kept(kept: Sequence[int | None]) -> str:
    return ", ".join("?" if count is None else str(count) for count in kept)
