"""What the page says of the rows of one scheme: a sentence on costs, and a paragraph that explains it.

A scheme without an entry in `KINDS` is summarised by `Kind()`: what its largest level costs over its smallest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Kind", "Row", "kind_of", "verdict"]

Row = dict[str, Any]


def verdict(row: Row) -> str:
    """Verified, or why not, in one line."""
    return "verified" if row["verified"] else str(row.get("why", "unknown")).replace("\n", " ")


def _levels(rows: Sequence[Row]) -> str:
    ratios = [max(row["shares"]) / min(row["shares"]) for row in rows if row.get("shares")]
    return f"most expensive level over cheapest: median {statistics.median(ratios):.2f}" if ratios else ""


@dataclass(frozen=True)
class Kind:
    """How the rows of a scheme are summarised."""

    costs: Callable[[Sequence[Row]], str] = _levels
    about: str = ""


def _cheapest(rows: Sequence[Row]) -> str:
    shares = [row["shares"][0] for row in rows if row.get("shares")]
    if not shares:
        return ""
    low = 100 * sum(one < 0.20 for one in shares) / len(shares)
    return f"cheapest level: median {statistics.median(shares):.3f}, below 0.20 for {low:.0f} %"


WIDTHS = Kind(
    _cheapest,
    """\
* **nested-channels**: MACs of the cheapest level over those of the backbone. The square of the width is 0.063. Rows
  that are not verified count too where they have a cost.
""",
)


def _ensembles(rows: Sequence[Row]) -> str:
    parts = []
    if costs := [row["shares"][-1] for row in rows if row.get("shares")]:
        parts.append(f"all leaves: median {statistics.median(costs):.2f} of the backbone")
    if fused := [row["fused"] for row in rows if row.get("fused") is not None]:
        whole = sum(one > 0.999 for one in fused)
        parts.append(f"fused share: median {100 * statistics.median(fused):.1f} %, everything for {whole}")
    return "; ".join(parts)


LEAVES = Kind(
    _ensembles,
    """\
* **hierarchical-ensemble**: MACs of all leaves over those of the backbone, which is one leaf. The fused share is the
  part of the MACs after the first cut that runs as one operation for all replicas. A row is verified only if levels,
  members and streamed levels differ by at most 1e-5, relative, from the same network with `fuse=False`, in eval mode,
  after zeros and ones of the initialisation have been replaced by other values. For backbones below 30 M parameters
  and 15 GMACs the same holds for the gradient of every parameter.
""",
)

EXITS = Kind(
    about="""\
* **auxiliary-branches**: two exits, placed automatically. MACs of the most expensive level over the cheapest.
"""
)


def _once(rows: Sequence[Row]) -> str:
    costs = [row["once"] for row in rows if row.get("once") is not None]
    streams = [row["stream"] for row in rows if row.get("stream") is not None]
    parts = [f"one pass for all levels: median {statistics.median(costs):.2f} of the backbone"] if costs else []
    return "; ".join([*parts, *([f"streams: at most {max(streams):.3f} of the full level"] if streams else [])])


TRIANGLES = Kind(
    _once,
    """\
* **connectivity=triangular**: MACs of one pass for all levels over those of the backbone, and operations of a stream of
  all levels over those of the full level's extract, by torch's counter, which counts masked weights too. A row is
  verified only if the levels of one pass, those run alone and those streamed differ by at most 1e-5, relative (with
  the same replaced values and the same gradients as above), the stream costs at most 1.05, and lower levels stay the
  same bit for bit when everything that later levels add is changed.
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
