"""Rows that the report of a model and that of a backbone share: axis groups, and why something is pinned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from anytimeify.analysis.axes import Axes, AxisGroup, Pin
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Captured, Program, names
from anytimeify.ir.node_meta import is_part, origin_of, type_of
from anytimeify.report.tables import Table
from anytimeify.rules.factors import Factor, Product, flat, leaves
from anytimeify.rules.op import name_of

__all__ = [
    "AxisRow",
    "Place",
    "Readers",
    "axis_rows",
    "axis_tables",
    "factors_of",
    "macs_shares",
    "note_tables",
    "pinned_macs",
    "reason_of",
    "sizes",
    "without_rule",
]


@dataclass(frozen=True)
class Place:
    """Something about one operation: why it pins an axis, or that it has no axis rule."""

    reason: str
    operation: str
    origin: str  # module path and source line of the backbone


@dataclass(frozen=True)
class AxisRow:
    """One axis group. `share`: the MACs of all operations that have the axis, as a part of those of the full network.

    `kept`: channels kept at each level, cheapest first; None where that cannot be read off the graph.
    """

    name: str
    role: str
    channels: int
    unit: int
    share: float
    sites: tuple[str, ...]
    pin: Place | None
    kept: tuple[int | None, ...] = ()


def axis_rows(captured: Captured, axes: Axes, readers: Sequence[Readers] = ()) -> tuple[AxisRow, ...]:
    """All axis groups in graph order, with what each of the `readers` keeps of them."""
    touched: dict[Factor, float] = {}
    for node, share in macs_shares(captured).items():
        for factor in factors_of(node, axes):
            touched[factor] = touched.get(factor, 0.0) + share
    dims = {str(node.target): axes.dims[node] for node in captured.program.graph.find_nodes(op="get_attr")}
    return tuple(
        AxisRow(
            name=group.name,
            role=group.role,
            channels=group.size,
            unit=group.quantum,
            share=touched.get(group.factor, 0.0),
            sites=tuple(f"{site.tensor}[{site.dim}]" for site in group.sites),
            pin=_place(group.pin) if group.pin is not None else None,
            kept=tuple(_kept(group, dims, reader) for reader in readers),
        )
        for group in axes.groups
    )


class Readers:
    """How much of each tensor one level reads."""

    def __init__(self, program: Program, level: int, position: int) -> None:
        self.level = level
        self.needed = ancestors([program.outputs[position]])
        reads = program.graph.find_nodes(op="get_attr")
        self.nodes = {str(node.target): node for node in reads if node in self.needed}

    def size(self, tensor: str, dim: int) -> int | None:
        """The length of a dimension after the views through which the level reads it; None if it reads none of it."""
        node = self.nodes.get(names.of_level(self.level, tensor), self.nodes.get(tensor))
        waiting, widest = [node] if node is not None else [], 0
        while waiting:
            source = waiting.pop()
            for user in source.users:
                if user in self.needed and is_part(user) and user.args[0] is source:
                    waiting.append(user)
                elif user in self.needed:
                    widest = max(widest, type_of(source).shape[dim].coefficient)
        return widest or None


def _kept(group: AxisGroup, dims: Mapping[str, Any], reader: Readers) -> int | None:
    """Read off a parameter whose dimension is made of this axis and axes that stay whole: no concatenation."""
    if group.pin is not None:
        return group.size
    for site in group.sites:
        expr = dims[site.tensor][site.dim]
        parts = expr.parts if isinstance(expr, Product) else (expr,)
        factors = [part for part in parts if isinstance(part, Factor)]
        kept = reader.size(site.tensor, site.dim)
        if kept is not None and len(factors) == len(parts):
            return int(group.size * kept // math.prod(factor.size.coefficient for factor in factors))
    return None


def pinned_macs(captured: Captured, axes: Axes) -> tuple[tuple[Place, float], ...]:
    """The MACs that no width changes, by reason and operation; the place is that of the first."""
    narrowable = {group.factor for group in axes.narrowable}
    found: dict[tuple[str, str], tuple[Place, float]] = {}
    for node, share in macs_shares(captured).items():
        if factors_of(node, axes) & narrowable:
            continue
        place = reason_of(node, axes)
        first, total = found.get((place.reason, place.operation), (place, 0.0))
        found[place.reason, place.operation] = (first, total + share)
    return tuple(sorted(found.values(), key=lambda row: -row[1]))


def reason_of(node: fx.Node, axes: Axes) -> Place:
    """Why an operation's axes are pinned: what is said of its parameters first, and of channels before positions."""
    parameters = [source for source in node.all_input_nodes if source.op == "get_attr"]
    pins = [
        leaf.pin
        for one in (*parameters, *node.all_input_nodes)
        for expr in flat(axes.dims[one])
        for leaf in leaves(expr)
        if leaf.pin is not None
    ]
    telling = [pin for pin in pins if pin.kind not in ("position", "batch", "input")]
    return _place(next(iter((*telling, *pins)), Pin("no axis is longer than 1")))


def macs_shares(captured: Captured) -> dict[fx.Node, float]:
    """The MACs of every operation as a part of those of the full network."""
    macs = macs_by_node(captured.program, captured.batch, *sizes(captured))
    total = sum(macs.values())
    return {node: count / total for node, count in macs.items()} if total else {}


def factors_of(node: fx.Node, axes: Axes) -> set[Factor]:
    """The factors of an operation's result and operands."""
    exprs = (expr for one in (node, *node.all_input_nodes) for expr in flat(axes.dims.get(one, ())))
    return {leaf for expr in exprs for leaf in leaves(expr)}


def _place(pin: Pin) -> Place:
    return Place(pin.reason, pin.where.op, str(pin.where.origin) if pin.where.op else "")


def without_rule(axes: Axes) -> tuple[Place, ...]:
    """Operations that the analysis knows nothing about."""
    reason = "no axis rule for this operation"
    return tuple(Place(reason, name_of(node), str(origin_of(node))) for node in axes.unknown)


# How they are shown.


def axis_tables(rows: Sequence[AxisRow], *, everything: bool) -> Iterator[Table]:
    """Free axis groups by role, then pinned ones by reason; those that touch most MACs come first."""
    ordered = sorted(rows, key=lambda row: -row.share)
    for role in ("stream", "inner"):
        free = [row for row in ordered if row.pin is None and row.role == role]
        kept = bool(free) and bool(free[0].kept)
        yield Table(
            f"Axis groups that may be narrowed, {role}: {len(free)}",
            (">groups", "axis", ">channels", ">unit", ">sites", ">of MACs, each", *(["kept"] if kept else [])),
            tuple(_axis_cells(same) for same in ([[row] for row in free] if everything else _alike(free))),
        )
    pinned: dict[tuple[str, str], list[AxisRow]] = {}
    for row in ordered:
        if row.pin is not None:
            pinned.setdefault((row.pin.reason, row.pin.operation), []).append(row)
    yield Table(
        f"Pinned axis groups: {sum(map(len, pinned.values()))}",
        (">groups", "why", "operation", "where", "such as"),
        tuple(
            (str(len(same)), why, operation, same[0].pin.origin if same[0].pin else "", same[0].name)
            for (why, operation), same in pinned.items()
        ),
    )


def _alike(rows: Sequence[AxisRow]) -> list[list[AxisRow]]:
    """Rows that differ in numbers inside their names alone, and in where they are used."""
    together: dict[Any, list[AxisRow]] = {}
    for row in rows:
        shape = tuple("*" if part.isdigit() else re.sub(r"\d+$", "*", part) for part in row.name.split("."))
        together.setdefault((shape, row.channels, row.unit, row.kept), []).append(row)
    return list(together.values())


def _axis_cells(same: Sequence[AxisRow]) -> tuple[str, ...]:
    """One line for axis groups that are alike, under a pattern such as `blocks.*.mlp.fc1`."""
    first = same[0]
    columns = zip(*(row.name.split(".") for row in same), strict=True)
    name = ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
    counts = [len(row.sites) for row in same]
    shares = [100 * row.share for row in same]
    cells = (
        str(len(same)),
        name,
        str(first.channels),
        str(first.unit),
        _range(counts, "d"),
        _range(shares, ".1f") + " %",
    )
    return (*cells, " ".join("-" if kept is None else str(kept) for kept in first.kept)) if first.kept else cells


def _range(numbers: Sequence[float], form: str) -> str:
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} - {high}"


def note_tables(notes: Sequence[str], unknown: Sequence[Place]) -> Iterator[Table]:
    """Operations without a rule, and what was lost or decided on the way."""
    rows = tuple((place.operation, place.origin) for place in unknown)
    yield Table("Operations without a rule: the axes that they touch are pinned", ("operation", "where"), rows)
    yield Table("Notes", ("note",), tuple((note,) for note in notes))
