"""Which levels nobody should run: others cost no more and give no less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from anytimeify.errors import ArgumentValueError

__all__ = ["check_scores", "dominated_by", "remark"]


def dominated_by(costs: Sequence[float], gains: Sequence[float] | None = None) -> list[int | None]:
    """For each level the best one that costs no more and gives no less, and is not equal in both; None where there is
    none. `gains`: accuracies, say; by default a later level gives more."""
    worth = list(range(len(costs))) if gains is None else gains
    points = list(zip(costs, worth, strict=True))
    result: list[int | None] = []
    for cost, gain in points:
        better = [
            place
            for place, (other, more) in enumerate(points)
            if other <= cost and more >= gain and (other, more) != (cost, gain)
        ]
        result.append(max(better, key=lambda place: (points[place][1], -points[place][0]), default=None))
    return result


def check_scores(scores: Mapping[str, float] | None, levels: Iterable[str]) -> None:
    """`ArgumentValueError` for the accuracy of what is no level, all by name, and for one that is not from 0 to 1."""
    levels = list(levels)
    unknown = [name for name in scores or () if name not in levels]
    if unknown:
        raise ArgumentValueError(
            f"accuracies: '{unknown[0]}' is not the name of a level; there are: {', '.join(levels)}"
        )
    for name, score in (scores or {}).items():
        if not 0 <= score <= 1:
            raise ArgumentValueError(f"accuracies: that of '{name}' is {score}: expected a number from 0 to 1")


def remark(name: str | None) -> str:
    """What a table says of a level that another dominates."""
    return "" if name is None else f"costs more and gives less than {name}"
