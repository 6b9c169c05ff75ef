"""Pictures of cost and accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from anytimeify.report.figures import figure
from anytimeify.report.pareto import check_scores
from anytimeify.report.tables import shortened

__all__ = ["plot"]


def plot(
    path: str | os.PathLike[str],
    costs: Mapping[str, tuple[int, int]],
    scores: Mapping[str, float],
    alone: Mapping[str, float],
) -> None:
    """Draws MACs and parameters of every level; with `scores`, accuracy against MACs beside them.

    `costs`: (MACs, parameters) by level name, cheapest first. `scores`: accuracy from 0 to 1 by level name; `alone`:
    the same of levels that are networks of their own. `ArtifactError` where the picture cannot be written.
    """
    check_scores(scores, costs)
    check_scores(alone, costs)
    panels = 2 if scores else 1
    with figure(path, panels) as drawn:
        _draw_costs(drawn.add_subplot(1, panels, panels), costs)
        if scores:
            _draw_scores(drawn.add_subplot(1, panels, 1), costs, scores, alone)


def _draw_costs(axes: Any, costs: Mapping[str, tuple[int, int]]) -> None:
    for index, (title, offset) in enumerate((("MACs", -0.2), ("parameters", 0.2))):
        whole = max(1, *(cost[index] for cost in costs.values()))
        heights = [100 * cost[index] / whole for cost in costs.values()]
        bars = axes.bar([place + offset for place in range(len(costs))], heights, 0.4, label=title)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(range(len(costs)), list(costs))
    axes.set_ylabel("cost, % of the dearest level")
    axes.legend(frameon=False, loc="upper left")


def _draw_scores(
    axes: Any, costs: Mapping[str, tuple[int, int]], scores: Mapping[str, float], alone: Mapping[str, float]
) -> None:
    names = [name for name in costs if name in scores]
    macs = [costs[name][0] for name in names]
    axes.plot(macs, [100 * scores[name] for name in names], "o-", label="one network")
    if alone:
        own = [name for name in costs if name in alone]
        axes.plot([costs[name][0] for name in own], [100 * alone[name] for name in own], "k*--", label="trained alone")
        axes.legend(frameon=False, loc="lower right")
    axes.set_xscale("log")
    # Names stand at the axis, where no curve is.
    turned = {"rotation": 30, "ha": "right"} if max(map(len, names), default=0) > 12 else {}
    axes.set_xticks(macs, [f"{name}\n{shortened(cost)}" for name, cost in zip(names, macs, strict=True)], **turned)
    axes.tick_params(axis="x", labelsize=8)
    axes.minorticks_off()
    axes.margins(0.12, 0.15)
    axes.set_xlabel("MACs of one sample")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
