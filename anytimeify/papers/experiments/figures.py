"""The figures: accuracy against cost, or bars. Networks that are trained alone are black."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

from anytimeify.errors import MissingExtraError
from anytimeify.papers.experiments.results import Results, Row

__all__ = ["draw"]

_MARKERS = "os^Dv<>Phx"
_ALONE = "black"


def draw(
    results: Results,
    form: Literal["curves", "bars", "values"],
    title: str,
    measured: str,
    path: str | os.PathLike[str],
) -> None:
    """Writes a PNG: means over seeds, with their standard deviations as error bars."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "The figure of an experiment") from error
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if form == "curves":
        _curves(axes, results)
    else:
        _bars(axes, list(results.measured() if form == "values" else results.rows()), results.networks)
        axes.set_ylabel(measured if form == "values" else "accuracy, %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120, format="png")


def _curves(axes: Any, results: Results) -> None:
    """One line a network, over the multiply-accumulates of its levels; networks that are trained alone share a line,
    unless they have several levels."""
    alone: list[Row] = []
    for place, network in enumerate(results.networks):
        rows = results.levels(network)
        if rows[0].alone and len(rows) == 1:
            alone += rows
            continue
        # A level has a line for each granularity.
        for part in dict.fromkeys(_granularity(row) for row in rows):
            own = [row for row in rows if _granularity(row) == part]
            label = f"{network}, {part}" if part else network
            colour = _ALONE if rows[0].alone else f"C{place % 10}"
            _line(axes, own, label, colour, _MARKERS[place % len(_MARKERS)])
    if alone:
        _line(axes, sorted(alone, key=lambda row: row.macs or 0), "trained alone", _ALONE, "*")
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates of a sample")
    axes.set_ylabel("accuracy, %")


def _line(axes: Any, rows: Sequence[Row], label: str, colour: str, marker: str) -> None:
    spread = [0.0 if math.isnan(row.deviation) else row.deviation for row in rows]
    axes.errorbar(
        [row.macs for row in rows],
        [row.mean for row in rows],
        yerr=spread,
        label=label,
        color=colour,
        marker=marker,
        markersize=5,
        capsize=2,
        linewidth=1.2,
        linestyle="--" if colour == _ALONE else "-",
    )


def _granularity(row: Row) -> str:
    return row.level.rpartition("/")[2] if "/" in row.level and not row.level.startswith(("first", "second")) else ""


def _bars(axes: Any, rows: Sequence[Row], networks: Sequence[str]) -> None:
    """Groups of bars, a group for every level or value, a bar in it for each network."""
    groups = list(dict.fromkeys(row.level for row in rows))
    width = 0.8 / max(1, len(networks))
    for place, network in enumerate(networks):
        own = [row for row in rows if row.network == network]
        if not own:
            continue
        axes.bar(
            [groups.index(row.level) + (place + 0.5) * width - 0.4 for row in own],
            [row.mean for row in own],
            width,
            yerr=[0.0 if math.isnan(row.deviation) else row.deviation for row in own],
            label=network,
            color="0.2" if own[0].alone else f"C{place % 10}",
            capsize=2,
        )
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 3 else 0, fontsize=7)
    lows = [row.mean for row in rows]
    if lows and min(lows) > 0:
        axes.set_ylim(
            bottom=max(0.0, min(lows) - 0.25 * (max(lows) - min(lows)) - 1e-3 * max(lows)) if len(lows) > 1 else 0
        )
