"""docs/coverage.md and docs/coverage.json from rows of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["summaries", "table", "verdict", "write"]

Row = dict[str, Any]

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
    parts = [PAGE, *([f"Measured at {revisions}.\n"] if revisions else []), *([f"{note}\n"] if note else [])]
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
                names = {row["backbone"] for row in group}
                beside = {name: row for name, row in peers.items() if name in names}
                yield f"{title}, `{scheme}`", group, beside


def _title(row: Row) -> str:
    kind: str = row["backbone"].partition(":")[0]
    return TITLES.get(row.get("list", ""), TITLES.get(kind, kind))


def summary(group: Sequence[Row], peers: dict[str, Row]) -> str:
    """Verified of all, the share of MACs of the cheapest level, and how long the analysis takes."""
    text = f"{sum(row['verified'] for row in group)} of {len(group)} verified."
    shares = [row["shares"][0] for row in group if row.get("shares")]
    if shares:
        low = 100 * sum(share < 0.20 for share in shares) / len(shares)
        text += (
            f" MACs of the cheapest level: median {statistics.median(shares):.3f}, below 0.20 for {low:.0f} % of them."
        )
    seconds = [row["analysis_seconds"] for row in group if "analysis_seconds" in row]
    if seconds:
        text += f" Analysis: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s."
    if peers:
        runs, late = sum(row["verified"] for row in peers.values()), sum(_late(row) for row in peers.values())
        text += f" Torch-Pruning: {runs} of {len(peers)} run after pruning, {late} do not end in time."
    return text


def _late(row: Row) -> bool:
    return str(row.get("why", "")).startswith("time limit")


def verdict(row: Row) -> str:
    """Verified, or why not, in one line."""
    return "verified" if row["verified"] else str(row.get("why", "unknown")).replace("\n", " ")


def table(group: Sequence[Row], peers: dict[str, Row]) -> str:
    """Markdown, a backbone a line, in the order of the families."""
    head = ["backbone", "family", "verified", "export s", "analysis s", "rest s", "peak MiB", "MACs at 0.25"]
    head += ["MACs pinned", "what holds the MACs"]
    head += ["MACs at 0.5", "Torch-Pruning at 0.5"] if peers else []
    lines = [head, ["---"] * len(head)]
    for row in sorted(group, key=lambda row: (row.get("family", ""), row["backbone"])):
        cells = [
            row["backbone"].partition(":")[2],
            row.get("family", ""),
            "yes" if row["verified"] else _short(verdict(row), 160),
            _number(row.get("export_seconds"), 1),
            _number(row.get("analysis_seconds"), 3),
            _number(row.get("rest_seconds"), 1),
            _number(row.get("peak_mib"), 0),
            _share(row.get("shares"), 0),
            _percent(row.get("pinned")),
            "; ".join(_held(*one[:3]) for one in row.get("held", ())[:2] if one[0] >= 0.0005) or "-",
        ]
        if peers:
            peer = peers.get(row["backbone"])
            cells += [_share(row.get("shares"), 1), _peer(peer)]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _held(share: float, reason: str, operation: str) -> str:
    return f"{100 * share:.1f} %: {reason}" + (f" ({operation})" if operation else "")


def _peer(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['shares'][0]:.3f}" if row["verified"] else _short(verdict(row), 60)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(shares: Sequence[float] | None, place: int) -> str:
    return f"{shares[place]:.3f}" if shares and len(shares) > place + 1 else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


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
* **MACs at 0.25**: multiply-accumulates of the cheapest level over those of the backbone; the square of the width is
  0.063. Rows that are not verified count in the summary too where they have a cost. **MACs pinned**: those of
  operations that cost at width 0.25 what they cost in full.
* **what holds the MACs**: the two largest parts of what level 0.25 costs above the square of the width, as a share of
  the backbone's MACs, by what keeps a channel axis of the layer longer.
* **Torch-Pruning**: 1.6.1, `BasePruner` with `GroupMagnitudeImportance` at a ratio of 0.5, 60 s: the share of MACs by
  its own counter where the result still runs on the example input, else why not. Beside it: MACs at width 0.5.
"""
