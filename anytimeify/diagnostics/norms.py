"""How large the weights of every unit of an axis are: of groups, branches, heads or channels, in their order.

`weight_norms(net)` shows where in the order of units a nested network puts its weights: the figure by which papers on
nested networks show that thin levels carry most of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify.diagnostics.chunks import leaves_of_levels, widths_of_levels
from anytimeify.diagnostics.pictures import drawing
from anytimeify.errors import ArgumentError
from anytimeify.ir import names
from anytimeify.passes.rewrites.reorder import units_of
from anytimeify.report.tables import Table, Tables
from anytimeify.runtime.model import AnytimeModel

__all__ = ["UnitNorms", "WeightNorms", "weight_norms"]


def weight_norms(
    net: AnytimeModel, where: str | Sequence[str] | None = None, *, order: int = 1, per_weight: bool = False
) -> WeightNorms:
    """The norm of the weights of every unit of the axes that are narrowed, layer by layer, in the full level.

    A unit is a channel, or what is kept and dropped as a whole: a group of a grouped convolution (a branch of a
    ResNeXt), a head. Its weights are all elements of a layer's weight that have it as their row, or their column.
    Entries that a mask leaves out do not count. In an ensemble units are its members.

    Parameters
        where: which axis groups, as in `NestedChannels`; by default the scheme's own, or all.
        order: 1 for the sum of absolute values, 2 for the root of the sum of squares.
        per_weight: divides sums by the number of weights that are not zero, so that units which read more channels
            than others (of masked weights) can be compared with them.

    Raises `ArgumentError` for another order, `SchemeError` where there is nothing that could be narrowed.
    """
    if order not in (1, 2) or isinstance(order, bool):
        raise ArgumentError(f"order={order!r}: expected 1 or 2")
    norm = _Norm(order, per_weight)
    rows = _members(net, norm) if net.rewritten.stacked_parameters else _units(net, where, norm)
    if not rows:
        raise ArgumentError("no layer has weights of such units; choose other axis groups in where")
    return WeightNorms(str(norm), tuple(level.name for level in net.levels), tuple(rows))


@dataclass(frozen=True, eq=False)
class UnitNorms:
    """The units of one dimension of one layer's weight.

    Fields
        layer: its name in the backbone.
        dim: the dimension of the weight.
        group: the name of the axis group.
        norms: (units,).
        weights: (units,), how many weights each unit has that are not zero.
        kept: how many units each level has, cheapest first.
    """

    layer: str
    dim: int
    group: str
    norms: Tensor
    weights: Tensor
    kept: tuple[int, ...]

    @property
    def relative(self) -> Tensor:
        """(units,): norms as multiples of their mean."""
        return self.norms / self.norms.mean()

    @property
    def by_level(self) -> tuple[float | None, ...]:
        """The mean of `relative` over the units that each level adds; None where it adds none."""
        starts = (0, *self.kept[:-1])
        pieces = [self.relative[start:end] for start, end in zip(starts, self.kept, strict=True)]
        return tuple(float(piece.mean()) if len(piece) else None for piece in pieces)


@dataclass(frozen=True, eq=False)
class WeightNorms(Tables):
    """The norms of an anytime model; prints as a table of the mean norm of the units that each level adds, as a
    multiple of the mean of all units."""

    norm: str
    levels: tuple[str, ...]
    rows: tuple[UnitNorms, ...]

    @cached_property
    def average(self) -> Tensor:
        """(units,): `relative`, averaged over all rows. Where these have different numbers of units, each is first
        averaged over as many equal parts of its order as the shortest has units."""
        fewest = min(len(row.norms) for row in self.rows)
        return torch.stack([F.adaptive_avg_pool1d(row.relative[None], fewest)[0] for row in self.rows]).mean(0)

    def title(self) -> str:
        return f"{self.norm} of the units that levels add, as a multiple of the mean over units"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        columns = ("layer", ">dimension", "axis group", ">units", *(f">{name}" for name in self.levels))
        rows = [
            (
                row.layer,
                str(row.dim),
                row.group,
                str(len(row.norms)),
                *("" if one is None else f"{one:.3f}" for one in row.by_level),
            )
            for row in self.rows
        ]
        means = []
        for place in range(len(self.levels)):
            known = [one for row in self.rows if (one := row.by_level[place]) is not None]
            means.append(f"{sum(known) / len(known):.3f}" if known else "")
        yield Table("Mean over layers", columns[4:], (tuple(means),))
        yield Table("Layers", columns, tuple(rows))

    def to_json(self) -> str:
        """Everything."""
        rows = [
            {"layer": row.layer, "dim": row.dim, "group": row.group, "norms": row.norms.tolist(), "kept": row.kept}
            for row in self.rows
        ]
        named = {"norm": self.norm, "levels": self.levels, "average": self.average.tolist(), "rows": rows}
        return json.dumps(named, indent=2)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws norms by unit: a line for every layer, and their average.

        Raises `MissingExtraError` without the extra `plot`, `ArtifactError` where the picture cannot be written.
        """
        with drawing(path, "Drawing norms") as figure:
            _draw(figure, self)


@dataclass(frozen=True)
class _Norm:
    order: int
    per_weight: bool

    def __str__(self) -> str:
        return f"l{self.order} norm{' per weight' if self.per_weight else ''}"

    def __call__(self, weight: Tensor, dim: int, unit: Tensor, units: int) -> tuple[Tensor, Tensor]:
        """The norm of every unit, and how many weights it has; `unit`: of each element of the dimension, or -1."""
        entries = weight.detach().cpu().double().abs().movedim(dim, 0).flatten(1)[unit >= 0]
        place = unit[unit >= 0]
        sums = torch.zeros(units, dtype=torch.float64).index_add_(0, place, entries.pow(self.order).sum(1))
        count = torch.zeros(units, dtype=torch.int64).index_add_(0, place, entries.count_nonzero(1))
        if self.per_weight:
            sums = sums / count.clamp(min=1)
        return sums.pow(1 / self.order).float(), count


def _units(net: AnytimeModel, where: str | Sequence[str] | None, norm: _Norm) -> list[UnitNorms]:
    where = net.scheme.narrowed if where is None else where
    program, axes, widths = net.captured.program, net.axes, widths_of_levels(net)
    weights = net.extract(net.full, dense=True).state_dict()  # what a mask leaves out is zero there
    groups = {group.factor: group for group in axes.chosen(where)}
    rows = []
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        tensor = program.tensors[name]
        own = weights.get(name)
        if not isinstance(tensor, nn.Parameter) or tensor.ndim < 2 or own is None or own.shape != tensor.shape:
            continue
        for dim, expr in enumerate(axes.dims[node]):
            for factor, group in groups.items():
                of_entry = torch.from_numpy(np.asarray(units_of(expr, factor)))
                if not bool((of_entry >= 0).any()):
                    continue
                size = factor.size.coefficient
                kept = tuple(one.get(factor, size) for one in widths)
                norms, count = norm(own, dim, of_entry, size)
                rows.append(UnitNorms(names.without_weight(name), dim, group.name, norms, count, kept))
    return rows


def _members(net: AnytimeModel, norm: _Norm) -> list[UnitNorms]:
    """Stacks hold the weights of members one after the other."""
    rewritten, backbone = net.rewritten, net.captured.program.tensors
    leaves, counts = len(rewritten.members), leaves_of_levels(net)
    rows = []
    for name, own in backbone.items():
        if name not in rewritten.stacked_parameters or not isinstance(own, nn.Parameter) or own.ndim < 2:
            continue
        members = rewritten.program.tensors[name].detach().reshape(-1, own.numel())
        kept = tuple(-(-count * len(members) // leaves) for count in counts)
        norms, count = norm(members, 0, torch.arange(len(members)), len(members))
        rows.append(UnitNorms(names.without_weight(name), 0, "members", norms, count, kept))
    return rows


def _draw(figure: Any, found: WeightNorms) -> None:
    figure.set_size_inches(6.4, 3.8)
    panel = figure.subplots()
    counts = {len(row.norms) for row in found.rows}
    for row in found.rows:
        places = (torch.arange(len(row.norms)) + 0.5) / len(row.norms)
        panel.plot(places, row.relative, color="0.75", linewidth=0.7)
    average = found.average
    middle = (torch.arange(len(average)) + 0.5) / len(average)
    panel.plot(middle, average, "o-", color="C3", markersize=3, label="mean")
    shares = {row.kept[place] / len(row.norms) for row in found.rows for place in range(len(row.kept) - 1)}
    if len(shares) < len(found.levels):  # the same in every layer
        for share in shares:
            panel.axvline(share, color="0.5", linewidth=0.7, linestyle=":")
    if len(counts) == 1 and len(average) <= 32:
        panel.set_xticks(middle.tolist(), [str(place + 1) for place in range(len(average))])
        panel.set_xlabel("unit")
    else:
        panel.set_xlabel("place among the units of a layer")
    panel.set_ylabel(f"{found.norm} / mean")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
