"""docs/coverage.md and docs/coverage.json from rows of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.coverage.columns import COMMON, Column, Row, kind_of, share, short, verdict

__all__ = ["summaries", "table", "verdict", "write"]

TITLES = {
    "backbones": "timm, one of every family",
    "members": "timm, further members of every family",
    "timm": "timm",
    "torchvision": "torchvision",
    "hf": "transformers, tiny configurations",
}


def write(rows: Sequence[Row], file: Path, pruning: str, note: str = "") -> None:
    """The page, and all numbers beside it as JSON. `note` says what a reader has to know of this run."""
    revisions = ", ".join(sorted({row["revision"] for row in rows if "revision" in row}))
    abouts = dict.fromkeys(kind_of(row["scheme"]).about for row in rows if row["scheme"] != pruning)
    page = "".join([PAGE, *abouts, PEERS])
    parts = [page, *([f"Measured at {revisions}.\n"] if revisions else []), *([f"{note}\n"] if note else [])]
    for title, group, peers in _sections(rows, pruning):
        parts += [f"## {title}\n", summary(group, peers) + "\n", table(group, peers) + "\n"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts))
    file.with_suffix(".json").write_text(json.dumps(list(rows), indent=1) + "\n")


def summaries(rows: Sequence[Row], pruning: str) -> list[str]:
    """One line for every table of the page."""
    return [f"{title}: {summary(group, peers)}" for title, group, peers in _sections(rows, pruning)]


def _sections(rows: Sequence[Row], pruning: str) -> Iterator[tuple[str, list[Row], dict[str, Row]]]:
    peers = {row["backbone"]: row for row in rows if row["scheme"] == pruning}
    own = [row for row in rows if row["scheme"] != pruning]
    for title in dict.fromkeys(map(_title, own)):
        for scheme in dict.fromkeys(row["scheme"] for row in own):
            group = [row for row in own if row["scheme"] == scheme and _title(row) == title]
            if group:
                names = {row["backbone"] for row in group if kind_of(scheme).beside}
                beside = {name: row for name, row in peers.items() if name in names}
                yield f"{title}, `{scheme}`", group, beside


def _title(row: Row) -> str:
    kind: str = row["backbone"].partition(":")[0]
    return TITLES.get(row.get("list", ""), TITLES.get(kind, kind))


def summary(group: Sequence[Row], peers: dict[str, Row]) -> str:
    """Verified of all, what the levels cost, and how long the analysis takes."""
    text = f"{sum(row['verified'] for row in group)} of {len(group)} verified."
    text += kind_of(group[0]["scheme"]).summary(group)
    seconds = [row["analysis_seconds"] for row in group if "analysis_seconds" in row]
    if seconds:
        text += f" Analysis: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s."
    if peers:
        runs, late = sum(row["verified"] for row in peers.values()), sum(_late(row) for row in peers.values())
        text += f" Torch-Pruning: {runs} of {len(peers)} run after pruning, {late} do not end in time."
    return text


def _late(row: Row) -> bool:
    return str(row.get("why", "")).startswith("time limit")


def table(group: Sequence[Row], peers: dict[str, Row]) -> str:
    """Markdown, a backbone a line, in the order of the families."""
    columns = [*COMMON, *kind_of(group[0]["scheme"]).columns]
    if peers:
        columns.append(Column("MACs at 0.5", lambda row: share(row.get("shares"), 1)))
        columns.append(Column("Torch-Pruning at 0.5", lambda row: _peer(peers.get(row["backbone"]))))
    ordered = sorted(group, key=lambda row: (row.get("family", ""), row["backbone"]))
    lines = [[column.title for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in ordered]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _peer(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['shares'][0]:.3f}" if row["verified"] else short(verdict(row), 60)


PAGE = """# Does it work on my model?

`python -m benchmarks.coverage` writes this page. Every backbone has random weights, a batch of 2 and a process of its
own with a time limit.

* **verified**: the full level equals the backbone, every level equals its extract, costs increase strictly, and one
  training step gives every trainable parameter a gradient that is finite. The loss is the model's own where the
  prediction is class scores, alone or at every pixel, and the sum of squares otherwise. A gradient of zeros counts:
  many backbones start with a last norm or a layer scale of zero, and nothing reaches what lies before it in the first
  step.
* **export**: `torch.export` alone, in the same process before. **analysis**: finding the axes. **rest**: what
  `transform` takes besides the two, verification included. **peak**: the largest resident memory of the process.
"""

PEERS = """\
* **Torch-Pruning**: 1.6.1, `BasePruner` with `GroupMagnitudeImportance` at a ratio of 0.5, 60 s: the share of MACs by
  its own counter where the result still runs on the example input, else why not. Beside it: MACs at width 0.5.
"""
