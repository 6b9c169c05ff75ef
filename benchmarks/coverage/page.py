"""docs/coverage.md from rows of results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.coverage.summaries import Row, kind_of, verdict

__all__ = ["summaries", "verdict", "write"]

TITLES = {
    "backbones": "timm, one of every family",
    "members": "timm, further members of every family",
    "timm": "timm",
    "torchvision": "torchvision",
    "hf": "transformers, tiny configurations",
}


def write(rows: Sequence[Row], file: Path, pruning: str, note: str = "") -> None:
    """The page. `pruning` is the scheme of Torch-Pruning's rows, `note` what a reader has to know of this run."""
    own = [row for row in rows if row["scheme"] != pruning]
    abouts = dict.fromkeys(kind_of(row["scheme"]).about for row in own)
    parts = ["".join([PAGE, *abouts, *([PEERS] if len(own) < len(rows) else [])])]
    parts += [f"{note}\n"] if note else []
    parts += ["## Summary\n", _table(SUMMARY, [_line(*one, pruning) for one in _groups(rows)])]
    failed = [[_title(row), row["backbone"], f"`{row['scheme']}`", verdict(row)] for row in own if not row["verified"]]
    if failed:
        parts += ["## Not verified\n", _table(FAILED, sorted(failed))]
    parts += ["## Backbones\n", *_names(own)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts))


def summaries(rows: Sequence[Row], pruning: str) -> list[str]:
    """One line for every line of the summary."""
    return [" | ".join(_line(*one, pruning)) for one in _groups(rows)]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows of one list of backbones under one scheme."""
    for title in dict.fromkeys(map(_title, rows)):
        for scheme in dict.fromkeys(row["scheme"] for row in rows):
            group = [row for row in rows if row["scheme"] == scheme and _title(row) == title]
            if group:
                yield title, scheme, group


def _title(row: Row) -> str:
    kind: str = row["backbone"].partition(":")[0]
    return TITLES.get(row.get("list", ""), TITLES.get(kind, kind))


def _line(title: str, scheme: str, group: Sequence[Row], pruning: str) -> list[str]:
    costs = _late(group) if scheme == pruning else kind_of(scheme).costs(group)
    seconds = [row["analysis_seconds"] for row in group if "analysis_seconds" in row]
    analysis = f"{statistics.median(seconds):.2f}, {max(seconds):.2f}" if seconds else "-"
    revisions = ", ".join(sorted({row["revision"] for row in group if "revision" in row}))
    good = f"{sum(row['verified'] for row in group)} of {len(group)}"
    return [title, f"`{scheme}`", good, costs or "-", analysis, revisions or "-"]


def _late(group: Sequence[Row]) -> str:
    late = sum(str(row.get("why", "")).startswith("time limit") for row in group)
    return f"not finished in time: {late}"


def _names(rows: Sequence[Row]) -> Iterator[str]:
    for title in dict.fromkeys(map(_title, rows)):
        names = sorted({row["backbone"].partition(":")[2] for row in rows if _title(row) == title})
        yield f"**{title}** ({len(names)}): {', '.join(names)}\n"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    cells = [titles, ["---"] * len(titles), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells) + "\n"


SUMMARY = ("backbones", "scheme", "verified", "MACs", "analysis s: median, worst", "revision")
FAILED = ("backbones", "backbone", "scheme", "why")
PAGE = """# Does it work on my model?

`python -m benchmarks.coverage --torch-pruning` writes this page; `--json FILE` also writes what was measured for every
backbone. Every backbone has random weights, a batch of 2 and a process of its own with a time limit.

* **verified**: the full level equals the backbone, every level equals its extract, costs increase strictly, and one
  training step gives every trainable parameter a finite gradient. The loss is the model's own where the prediction is
  class scores, for an image or for every pixel, and the sum of squares otherwise. A gradient of zero counts as present:
  many backbones start with a last norm or a layer scale of zero, so that nothing before it gets a gradient in the first
  step.
* **MACs**: multiply-accumulates; what is compared depends on the scheme. **analysis**: finding the axis groups.
  **revision**: the commit that was measured; `+` means that files differed from it.
"""
PEERS = """\
* **torch-pruning**: Torch-Pruning 1.6.1, `BasePruner` with `GroupMagnitudeImportance` at a ratio of 0.5, limited to
  60 s. Verified means here that the pruned network still runs on the example input.
"""
