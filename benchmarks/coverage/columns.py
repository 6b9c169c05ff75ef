"""What a table shows of the rows of one scheme.

A scheme without an entry in `KINDS` gets the columns of `Kind()`: its levels and what they cost. An entry adds what is
particular to it, as columns, as a sentence of the summary and as a paragraph of the page.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["COMMON", "Column", "Kind", "Row", "kind_of", "number", "share", "short", "verdict"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: its title, and its cell in a row."""

    title: str
    cell: Callable[[Row], str]


def verdict(row: Row) -> str:
    """Verified, or why not, in one line."""
    return "verified" if row["verified"] else str(row.get("why", "unknown")).replace("\n", " ")


def short(text: str, length: int) -> str:
    """A text cut to a length."""
    return text if len(text) <= length else text[: length - 3] + "..."


def number(value: float | None, digits: int) -> str:
    """A number with some decimals, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(shares: Sequence[float] | None, place: int) -> str:
    """One of some shares, where there are more behind it."""
    return f"{shares[place]:.3f}" if shares and len(shares) > place + 1 else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


COMMON = (
    Column("backbone", lambda row: row["backbone"].partition(":")[2]),
    Column("family", lambda row: row.get("family", "")),
    Column("verified", lambda row: "yes" if row["verified"] else short(verdict(row), 160)),
    Column("export s", lambda row: number(row.get("export_seconds"), 1)),
    Column("analysis s", lambda row: number(row.get("analysis_seconds"), 3)),
    Column("rest s", lambda row: number(row.get("rest_seconds"), 1)),
    Column("peak MiB", lambda row: number(row.get("peak_mib"), 0)),
)


# Any scheme.


def _levels(row: Row) -> str:
    levels, shares = row.get("levels", ()), row.get("shares", ())
    return ", ".join(f"{name}: {one:.3f}" for name, one in zip(levels, shares, strict=True)) or "-"


def _costs(rows: Sequence[Row]) -> str:
    ratios = [max(row["shares"]) / min(row["shares"]) for row in rows if row.get("shares")]
    return f" MACs of the dearest level over the cheapest: median {statistics.median(ratios):.2f}." if ratios else ""


@dataclass(frozen=True)
class Kind:
    """How the rows of a scheme are shown. `beside`: Torch-Pruning's rows are comparable, with the second level."""

    columns: tuple[Column, ...] = (Column("MACs of the levels", _levels),)
    summary: Callable[[Sequence[Row]], str] = _costs
    about: str = ""
    beside: bool = False


# Widths.


def _held(row: Row) -> str:
    def part(portion: float, reason: str, operation: str) -> str:
        return f"{100 * portion:.1f} %: {reason}" + (f" ({operation})" if operation else "")

    return "; ".join(part(*one[:3]) for one in row.get("held", ())[:2] if one[0] >= 0.0005) or "-"


def _cheapest(rows: Sequence[Row]) -> str:
    shares = [row["shares"][0] for row in rows if row.get("shares")]
    if not shares:
        return ""
    low = 100 * sum(one < 0.20 for one in shares) / len(shares)
    return f" MACs of the cheapest level: median {statistics.median(shares):.3f}, below 0.20 for {low:.0f} % of them."


WIDTHS = Kind(
    columns=(
        Column("MACs at 0.25", lambda row: share(row.get("shares"), 0)),
        Column("MACs pinned", lambda row: _percent(row.get("pinned"))),
        Column("what holds the MACs", _held),
    ),
    summary=_cheapest,
    about="""\
* **MACs at 0.25**: multiply-accumulates of the cheapest level over those of the backbone; the square of the width is
  0.063. Rows that are not verified count in the summary too where they have a cost. **MACs pinned**: those of
  operations that cost at width 0.25 what they cost in full.
* **what holds the MACs**: the two largest parts of what level 0.25 costs above the square of the width, as a share of
  the backbone's MACs, by what keeps a channel axis of the layer longer.
""",
    beside=True,
)


# Ensembles.


def _last(row: Row, name: str) -> float | None:
    values = row.get(name)
    return values[-1] if values else None


def _unrolled(row: Row) -> str:
    listed = sorted(row.get("unrolled", ()), key=lambda one: (-one[2], -one[1]))
    return "; ".join(f"{operation} ({count})" for operation, count, _ in listed[:3]) or "-"


def _agreement(row: Row) -> str:
    """Differences from the unrolled network; those in single precision say so."""
    found = row.get("fused_equals_unrolled")
    if not found:
        return "-"
    gradients = f", gradients {_small(found['gradients'])}" if "gradients" in found else ""
    single = f" ({found['precision']})" if found["precision"] != "float64" else ""
    return f"{_small(found['outputs'])}{gradients}{single}"


def _small(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _ensembles(rows: Sequence[Row]) -> str:
    text = ""
    if costs := [row["shares"][-1] for row in rows if row.get("shares")]:
        text += f" MACs of all leaves: median {statistics.median(costs):.2f} of the backbone's."
    if fused := [row["fused"] for row in rows if row.get("fused") is not None]:
        whole = sum(one > 0.999 for one in fused)
        text += f" The siblings' MACs run fused: median {_percent(statistics.median(fused))}, all of them for {whole}."
    return text


LEAVES = Kind(
    columns=(
        Column("leaves", lambda row: number(row.get("members"), 0)),
        Column("MACs", lambda row: number(_last(row, "shares"), 2)),
        Column("parameters", lambda row: number(_last(row, "parameter_shares"), 2)),
        Column("stream", lambda row: number(row.get("stream"), 3)),
        Column("MACs fused", lambda row: _percent(row.get("fused"))),
        Column("member by member", _unrolled),
        Column("fused against unrolled", _agreement),
    ),
    summary=_ensembles,
    about="""\
* **leaves** of an ensemble; **MACs** and **parameters** of all of them together over those of the backbone, which is
  one leaf. **stream**: MACs of all levels one after the other over those of one evaluation of all leaves.
* **MACs fused**: the share of the MACs behind the first cut that run as one operation for all siblings. **member by
  member**: the operations that do not, those of most MACs first, counted in the backbone's graph.
* **fused against unrolled**: the largest relative difference of levels and members from the same network with
  `fuse=False`, in eval mode, after zeros and ones of the start have been given other values. For backbones below 30 M
  parameters and 15 GMACs also that of the gradients of every parameter, relative to the largest. In double precision
  unless the cell says otherwise. A row is verified only where none of this and of the streamed levels is above 1e-5.
""",
)

EXITS = Kind(
    about="""\
* **auxiliary-branches**: two exits that are placed automatically, with the place of each fork and its MACs over
  the backbone's, its part of the trunk counted.
""",
)

# Triangles.


def _differences(row: Row) -> str:
    """Differences between one pass and several; those in single precision say so."""
    found = row.get("one_pass")
    if not found:
        return "-"
    gradients = f", gradients {_small(found['gradients'])}" if "gradients" in found else ""
    single = f" ({found['precision']})" if found["precision"] != "float64" else ""
    return f"{_small(max(found['outputs'], found['stream']))}{gradients}{single}"


def _once(rows: Sequence[Row]) -> str:
    costs = [row["once"] for row in rows if row.get("once") is not None]
    streams = [row["stream"] for row in rows if row.get("stream") is not None]
    text = (
        f" MACs of one pass for all levels: median {statistics.median(costs):.2f} of the backbone's." if costs else ""
    )
    return text + (f" Streams cost at most {max(streams):.3f} of the full level." if streams else "")


TRIANGLES = Kind(
    columns=(
        Column(
            "MACs of the levels",
            lambda row: ", ".join(f"{one * row['masked']:.3f}" for one in row["shares"]) if "masked" in row else "-",
        ),
        Column("one pass", lambda row: number(row.get("once"), 2)),
        Column("stream", lambda row: number(row.get("stream"), 2)),
        Column("one pass against many", _differences),
    ),
    summary=_once,
    about="""\
* **triangular**: what every level costs over the backbone, weights that are masked left out; what **one pass** for all
  levels costs over the backbone; and the operations of a **stream** of all levels over those of the full level's
  extract, by torch's counter (which does not leave masked weights out).
* **one pass against many**: the largest relative difference between the levels of one pass and those run alone or
  streamed, in eval mode, after zeros and ones of the start have been given other values. For backbones below 30 M
  parameters and 15 GMACs also that of the gradients of one backward pass and of one per level. In double precision
  unless the cell says otherwise. A row is verified only where none is above 1e-5, the stream costs at most 1.05, and
  lower levels stay the same bit for bit when all that later levels add is changed.
""",
)

KINDS = {
    "nested-channels{widths=0.25,0.5,1 connectivity=triangular}": TRIANGLES,
    "nested-channels": WIDTHS,
    "hierarchical-ensemble": LEAVES,
    "auxiliary-branches": EXITS,
}


def kind_of(scheme: str) -> Kind:
    """By the name of a scheme, with or without its options."""
    return KINDS.get(scheme, KINDS.get(scheme.partition("{")[0].strip(), Kind()))
