"""What keeps the cheapest level dear: where a width of 0.25 does not leave a quarter of the cost or less, and why.

Level 0 costs 41 % of the full level: what holds it
of MACs  why                                 where                       what to change
  25.0 %  an output of the model              conv2d (layer4.1.conv2)     output=... another prediction
   8.3 %  keeps 1 of 3 units of 64 channels   blocks.*.attn.qkv           a width of a whole number of units
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.ir import Captured, Level
from anytimeify.ir.rewritten import LevelData
from anytimeify.report.rows import AxisRow, factors_of, macs_shares, reason_of
from anytimeify.report.tables import Table, in_percent

__all__ = ["HeldRow", "held_rows", "held_table"]

_ROWS = 5
# What a user can do about a pin, by a part of its reason.
_ADVICE: Mapping[str, str] = {
    "an output of the model": "output=... for a prediction further on, or transform the network without this output",
    "an input of the model": "nothing: it has the size of the input",
    "no axis rule": "a rule for the operation (docs/first_op_rule.md)",
    "its groups are computed": "a fixed number of groups",
}


@dataclass(frozen=True)
class HeldRow:
    """One reason why the cheapest level costs what it does. `share`: the MACs that the level has there, as a part of
    those of the full level."""

    share: float
    why: str
    where: str
    advice: str


def held_rows(
    captured: Captured, axes: Axes, rows: Sequence[AxisRow], levels: Sequence[Level], data: Sequence[LevelData]
) -> tuple[HeldRow, ...]:
    """The reasons, largest first; none where the cheapest level costs less than its width, or is none of widths."""
    width, full = data[0].number, max(level.cost.macs for level in levels)
    kept = {row.name: row.kept[0] for row in rows if row.kept and row.kept[0] is not None}
    narrowed = any(kept.get(row.name, row.channels) < row.channels for row in rows)
    if width is None or not 0 < width < 1 or not narrowed or levels[0].cost.macs < width * full:
        return ()
    by_factor = {group.factor: row for group, row in zip(axes.groups, rows, strict=True)}
    found: dict[tuple[str, str], HeldRow] = {}
    for node, share in macs_shares(captured).items():
        own = [by_factor[factor] for factor in factors_of(node, axes) if factor in by_factor]
        free = [row for row in own if row.pin is None]
        parts = {row.name: kept.get(row.name, width * row.channels) / row.channels for row in free}
        part = math.prod(parts.values())
        if part < width:
            continue
        widest = max(free, key=lambda row: parts[row.name], default=None)
        if widest is not None and parts[widest.name] > width:
            why, where, advice, key = _of_units(widest, kept[widest.name])
        else:
            why, where, advice, key = _of_pin(node, axes)
        before = found[why, key].share if (why, key) in found else 0.0
        found[why, key] = HeldRow(before + share * part, why, where, advice)
    return tuple(sorted(found.values(), key=lambda row: -row.share)[:_ROWS])


def _of_pin(node: fx.Node, axes: Axes) -> tuple[str, str, str, str]:
    """Why, where, what to change, and what such reasons are put together by."""
    place = reason_of(node, axes)
    advice = next((text for part, text in _ADVICE.items() if part in place.reason), "")
    return place.reason, f"{place.operation} ({place.origin})" if place.operation else "", advice, place.operation


def _of_units(row: AxisRow, count: int) -> tuple[str, str, str, str]:
    units, of = count // row.unit, row.channels // row.unit
    if of == 1:
        return f"is one unit of {row.unit} channels", row.name, "nothing: a unit is not divided", row.name
    if units == of:
        return f"stays whole: {count} channels", row.name, "where=..., if it leaves this out; multiple_of=1", row.name
    what = f"{units} of {of} units of {row.unit} channels" if row.unit > 1 else f"{count} of {of} channels"
    advice = f"widths in steps of 1/{of}; multiple_of=1" if row.unit > 1 else "multiple_of=1"
    return f"keeps {what}", row.name, advice, row.name


def held_table(rows: Sequence[HeldRow], share: float) -> Table:
    """The rows as a table; `share`: what the level costs of the full level."""
    return Table(
        f"Level 0 costs {in_percent(share)} of the full level: what holds it",
        (">of MACs", "why", "where", "what to change"),
        tuple((in_percent(row.share), row.why, row.where, row.advice) for row in rows),
    )
