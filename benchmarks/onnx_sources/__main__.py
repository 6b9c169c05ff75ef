"""ONNX files as sources: networks through both exporters of torch, and files of other people's packages.

    python -m benchmarks.onnx_sources --rows out/onnx_sources.jsonl --out docs/onnx.md

Rows are appended to the file of JSON lines as soon as they are known, and what is there is not tried again: a run can
be stopped, or done in parts (`--only`). The page is written from all of them. Exit status 1 where a file that was
written is not read, transformed and verified as it should be.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.onnx_sources.exports import EXPORTS
from benchmarks.onnx_sources.networks import FILES, NETWORKS
from benchmarks.onnx_sources.page import page
from benchmarks.onnx_sources.rows import Row, append, file_row, network_rows, read_rows

ROOT = Path(__file__).parents[2]


def main(
    rows: Annotated[Path, typer.Option(help="JSON lines, one for each file.")] = ROOT / "out" / "onnx_sources.jsonl",
    only: Annotated[str, typer.Option(help="Only networks and packages with this in their name.")] = "",
    files: Annotated[bool, typer.Option(help="Also the files of packages, which pip downloads.")] = True,
    out: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
) -> None:
    """Tries what has no row yet, prints every row, and writes the page."""
    warnings.simplefilter("ignore")
    rows.parent.mkdir(parents=True, exist_ok=True)
    known = {(row.source, row.file): row for row in read_rows(rows)}
    with tempfile.TemporaryDirectory() as folder:
        for row in _missing(known, only, Path(folder), files=files):
            known[row.source, row.file] = row
            append(rows, row)
            print(row, flush=True)
    if out is not None:
        out.write_text(page(known))
    raise typer.Exit(not all(row.holds for row in known.values()))


def _missing(known: Mapping[tuple[str, str], Row], only: str, folder: Path, *, files: bool) -> Iterator[Row]:
    for name in NETWORKS:
        if only in name:
            yield from network_rows(name, [way for way in EXPORTS if (name, str(way)) not in known], folder)
    for wheel in FILES:
        if files and only in wheel.package and (wheel.package, wheel.member) not in known:
            yield file_row(wheel, folder)


if __name__ == "__main__":
    typer.run(main)
