"""The figures: accuracy against one cost or two, or bars. Networks that are trained alone are black lines."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from anytimeify.errors import MissingExtraError
from anytimeify.papers.experiments.results import Results, Row
from anytimeify.report.tables import shortened

__all__ = ["Form", "draw", "require_figure"]

Form: TypeAlias = Literal["curves", "bars", "values", "costs"]
"""`"costs"`: curves twice, over multiply-accumulates and over what was measured of each level."""

_MARKERS = "os^Dv<>Phx"
_ALONE = "black"
_LINES = ("--", ":", "-.")


def draw(
    results: Results,
    form: Form,
    title: str,
    measured: str,
    path: str | os.PathLike[str],
) -> None:
    """Writes a PNG: means over seeds, with their standard deviations as error bars."""
    require_figure()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 if form == "costs" else 1
    figure = Figure(figsize=(3.0 + 4.5 * panels, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    figure.suptitle(title, fontsize=10)
    for one in axes:
        one.grid(alpha=0.3)
    if form in ("curves", "costs"):
        _curves(axes[0], results, {_key(row): row.macs for row in results.rows()})
        axes[0].set_xlabel("multiply-accumulates of a sample")
        axes[0].set_ylabel("accuracy, %")
        if form == "costs":
            _curves(axes[1], results, {_key(row): row.mean for row in results.measured()})
            axes[1].set_xlabel(measured)
    else:
        _bars(axes[0], list(results.measured() if form == "values" else results.rows()), results.networks)
        axes[0].set_ylabel(measured if form == "values" else "accuracy, %")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120, format="png")


def require_figure() -> None:
    """Raises `MissingExtraError` unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "The figure of an experiment") from error


def _key(row: Row) -> tuple[str, str]:
    return row.network, row.level


def _curves(axes: Any, results: Results, costs: Mapping[tuple[str, str], float | None]) -> None:
    """One line a network, over what its levels cost; networks that are trained alone share a line, unless they have
    several levels."""

    def line(rows: Sequence[Row], label: str, colour: str, marker: str, style: str) -> None:
        points = [(cost, row) for row in rows if (cost := costs.get(_key(row))) is not None]
        axes.errorbar(
            [cost for cost, _ in points],
            [row.mean for _, row in points],
            yerr=[_spread(row) for _, row in points],
            label=label,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            linewidth=1.2,
            linestyle=style,
        )

    alone: list[Row] = []
    for place, network in enumerate(results.networks):
        rows = results.levels(network)
        if rows[0].alone and len(rows) == 1:
            alone += rows
            continue
        # A level has a line for each granularity.
        for count, part in enumerate(dict.fromkeys(_granularity(row) for row in rows)):
            own = [row for row in rows if _granularity(row) == part]
            label = f"{network}, {part}" if part else network
            colour = _ALONE if rows[0].alone else f"C{place % 10}"
            style = _LINES[count % len(_LINES)] if count or rows[0].alone else "-"
            line(own, label, colour, _MARKERS[place % len(_MARKERS)], style)
    if alone:
        line(sorted(alone, key=lambda row: costs.get(_key(row)) or 0), "trained alone", _ALONE, "*", _LINES[0])
    _scale(axes, [cost for cost in costs.values() if cost is not None])


def _scale(axes: Any, costs: Sequence[float]) -> None:
    """A logarithmic axis with as many numbers as it has room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    near = max(costs) < 5 * min(costs)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if near else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: shortened(int(cost)) if cost > 1000 else f"{cost:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _granularity(row: Row) -> str:
    return row.level.rpartition("/")[2] if "/" in row.level and not row.level.startswith(("first", "second")) else ""


def _bars(axes: Any, rows: Sequence[Row], networks: Sequence[str]) -> None:
    """Groups of bars, a group for every level or value, a bar in it for each network. Of networks with branches the
    backbones alone; networks that are trained alone are lines across."""
    bars = [row for row in rows if not row.alone]
    bars = [row for row in bars if row.level.rpartition("/")[2] == "full"] or bars
    groups = list(dict.fromkeys(row.level for row in bars))
    drawn = [network for network in networks if any(row.network == network for row in bars)]
    width = 0.8 / max(1, len(drawn))
    for place, network in enumerate(drawn):
        own = [row for row in bars if row.network == network]
        axes.bar(
            [groups.index(row.level) + (place + 0.5) * width - 0.4 for row in own],
            [row.mean for row in own],
            width,
            yerr=[_spread(row) for row in own],
            label=network,
            color=f"C{place % 10}",
            capsize=2,
        )
    for place, row in enumerate(row for row in rows if row.alone):
        axes.axhline(row.mean, label=row.network, color=_ALONE, linestyle=_LINES[place % len(_LINES)], linewidth=1.2)
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 3 else 0, fontsize=7)
    shown = [*bars, *(row for row in rows if row.alone)]
    low = min(row.mean - _spread(row) for row in shown)
    high = max(row.mean + _spread(row) for row in shown)
    room = max(high - low, 0.02 * abs(high))
    axes.set_ylim(low - 0.3 * room if low > 0 else None, high + 0.1 * room)


def _spread(row: Row) -> float:
    return 0.0 if math.isnan(row.deviation) else row.deviation
