"""Files of results: JSON lines, one for every backbone and scheme, appended as soon as they are known."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

__all__ = ["begin", "read_results", "revision"]

ROOT = Path(__file__).parents[2]


def begin(results: Path, *, keep: bool) -> None:
    """An empty file, or the one that there is; a line that was cut off when the benchmark was stopped is ended."""
    text = results.read_text() if keep and results.exists() else ""
    results.write_text(text if not text or text.endswith("\n") else text + "\n")


def read_results(*files: Path) -> list[dict[str, Any]]:
    """Rows of results files; of several for one backbone and scheme the last one counts."""
    rows = chain.from_iterable(_rows(file) for file in files if file.exists())
    return list({(row["backbone"], row["scheme"]): row for row in rows}.values())


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut off when the benchmark was stopped
            continue


@cache
def revision() -> str:
    """What is measured, by git; a `+` says that files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
