"""Levels as points in a picture: what they are worth against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Point", "draw"]


class Point(NamedTuple):
    """A level. Those that others dominate are hollow, and not on the line."""

    cost: float
    worth: float
    name: str
    dominated: bool


def draw(axes: Any, points: Sequence[Point], label: str = "") -> None:
    """One line, with a name at each point."""
    best = sorted(point[:2] for point in points if not point.dominated)
    (line,) = axes.plot([cost for cost, _ in best], [worth for _, worth in best], "o-", label=label)
    for point in points:
        if point.dominated:
            axes.plot([point.cost], [point.worth], "o", markerfacecolor="white", color=line.get_color())
        place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(point.name, (point.cost, point.worth), **place)
    axes.grid(alpha=0.3)
    axes.margins(0.12, 0.15)
