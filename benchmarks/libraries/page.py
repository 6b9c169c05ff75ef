"""docs/libraries.md from rows of results."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["kind", "summaries", "write"]

Row = dict[str, Any]
EXPORT = "torch.export"
REQUIREMENTS = ("requirements.txt", "without-dependencies.txt")


def write(rows: Sequence[Row], schemes: Mapping[str, str], file: Path) -> None:
    """The page. `schemes`: specs by the titles of their columns."""
    cells = {(row["backbone"], row["scheme"]): row for row in rows}
    names = list(dict.fromkeys(row["backbone"] for row in rows))
    parts = [PAGE, f"Measured at {', '.join(sorted({row.get('revision', 'unknown') for row in rows}))}.\n"]
    parts += ["## Summary\n", _table(SUMMARY, _summary(rows, schemes))]
    parts += ["## Networks\n", LEGEND, _table(("network", *schemes), [_line(name, cells, schemes) for name in names])]
    parts += ["## Reasons\n", *_reasons(rows, schemes)]
    parts += ["## Versions\n", *(f"* {line}" for line in _versions(names)), "", NOTES]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts))


def summaries(rows: Sequence[Row], schemes: Mapping[str, str]) -> list[str]:
    """One line for every scheme."""
    return [" | ".join(line) for line in _summary(rows, schemes)]


def _summary(rows: Sequence[Row], schemes: Mapping[str, str]) -> list[list[str]]:
    exported = {row["backbone"] for row in rows if row["scheme"] == EXPORT and row["status"] == "verified"}
    lines = []
    for title, scheme in schemes.items():
        group = [row for row in rows if row["scheme"] == scheme]
        if not group:
            continue
        of = group if scheme == EXPORT else [row for row in group if row["backbone"] in exported]
        counts = Counter(row["status"] for row in of)
        lines.append(
            [title, f"`{scheme}`", f"{counts['verified']} of {len(of)}"]
            + [str(counts[status]) for status in ("refused", "wrong", "crashed")]
        )
    return lines


def _line(name: str, cells: Mapping[tuple[str, str], Row], schemes: Mapping[str, str]) -> list[str]:
    return [name, *(_cell(cells.get((name, scheme))) for scheme in schemes.values())]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['status']}, fixed batch" if row["status"] == "verified" and "fixed" in row else str(row["status"])


def kind(why: str) -> str:
    """What reasons have in common: without names, numbers, and places."""
    text = why.split(" (at ")[0].split(" [")[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", text)
    text = re.sub(r" at [\w./-]+\.py:\d+ in \w+|\([^()]*\)", "", text)
    text = re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "N", text)
    return text[:110].strip()


def _reasons(rows: Sequence[Row], schemes: Mapping[str, str]) -> list[str]:
    """Every status but `verified`: the first reason of each kind in full, and where it occurs."""
    titles = {scheme: title for title, scheme in schemes.items()}
    parts = []
    for status, about in STATUSES.items():
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["status"] == status:
                groups[kind(row.get("why", ""))].append(row)
        if groups:
            parts.append(f"### {status.capitalize()}\n\n{about}\n")
        for group in sorted(groups.values(), key=len, reverse=True):
            where: dict[str, list[str]] = defaultdict(list)
            for row in group:
                where[row["backbone"]].append(titles.get(row["scheme"], str(row["scheme"])))
            places = "; ".join(f"{name} ({', '.join(columns)})" for name, columns in where.items())
            parts.append(f"* {_one_line(group[0].get('why', ''))}\n  {places}")
        parts.append("")
    return parts


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<").replace("|", "\\|")[:400]


def _versions(names: Sequence[str]) -> list[str]:
    """Of the libraries whose networks were run, and of torch, as they are installed."""
    libraries = sorted({"torch", *(name.partition(":")[0] for name in names)})
    found = []
    for library in libraries:
        try:
            found.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            found.append(f"{library}, not installed here")
    return found


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in rows) + "\n"


SUMMARY = ("column", "scheme", "verified, of the networks that torch.export takes", "refused", "wrong", "crashed")
STATUSES = {
    "wrong": "The anytime model is not what it should be, as found by the comparison here or by `verify`.",
    "crashed": "An error that was not made for a user, or the limit of time or memory.",
    "refused": "An error that says why.",
    "not exported": "Plain `torch.export`, with the sizes of the example, fails in train and in eval mode.",
    "does not run": "The network itself does not run here.",
}
LEGEND = "*fixed batch*: the batch size cannot be dynamic, so `dynamic_shapes={}` was passed.\n"
NOTES = """Versions are pinned in `benchmarks/libraries/requirements.txt`, and those whose own pins are left aside in
`benchmarks/libraries/without-dependencies.txt`, with the reason. None of them is a dependency of this package.
"""
PAGE = """# Other people's libraries

`make libraries` writes this page: in an environment of its own, networks of other people's libraries, small and with
random weights, under every scheme, each in a process of its own under limits of time and memory.

* **verified**: on new inputs, in batches of the example's size, of 1 and of 3 where the network takes them, the full
  level equals the backbone and every level equals its extract; costs increase strictly; in train mode the gradients of
  a weighted sum of squares through the full level equal the backbone's, or in eval mode where the network returns
  something else in training. With triangular connectivity the full level is no copy of the backbone: levels are
  compared with their extracts. The comparison is code of its own and uses none of `verify`, which runs too.
* **torch.export**: plain `torch.export` with the sizes of the example, and nothing of this package.
"""
