"""The folders that experiments and comparisons write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["begun", "lines"]


def lines(folder: Path) -> list[dict[str, Any]]:
    """What was found of every network and seed."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def begun(folder: Path, as_in: Path) -> Path:
    """The folder, with the results of another and nothing else."""
    (folder / "results.jsonl").write_bytes((as_in / "results.jsonl").read_bytes())
    return folder
