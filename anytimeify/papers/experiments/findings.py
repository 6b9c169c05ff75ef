"""Whether a claim shows: comparisons of two networks, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from anytimeify.papers.experiments.results import Results, deviation

__all__ = ["Comparison", "Finding", "find"]


@dataclass(frozen=True)
class Comparison:
    """That one row of a table is above another one.

    Fields
        what: in words, such as `"1 leaf, L_I + L_HD over L_I"`.
        better, worse: network and row, by place or name.
        margin: by at least so much; below zero: at most so much worse.
        unit: of the numbers.
    """

    what: str
    better: tuple[str, int | str]
    worse: tuple[str, int | str]
    margin: float = 0.0
    unit: str = " points"


@dataclass(frozen=True)
class Finding:
    """A comparison, carried out: differences of seeds that both have."""

    comparison: Comparison
    differences: tuple[float, ...]

    @property
    def shows(self) -> bool | None:
        """Whether it does; None where the mean is within two standard errors of the margin, or there is one seed."""
        if len(self.differences) < 2:
            return None
        over = statistics.mean(self.differences) - self.comparison.margin
        error = deviation(self.differences) / math.sqrt(len(self.differences))
        return None if abs(over) <= 2 * error else over > 0

    def __str__(self) -> str:
        mean, margin = statistics.mean(self.differences), self.comparison.margin
        won = sum(one > margin for one in self.differences)
        spread = f" ± {deviation(self.differences):.2f}" if len(self.differences) > 1 else ""
        least = f", where {margin:+g} is asked for" if margin else ""
        return (
            f"{self.comparison.what}: {mean:+.2f}{spread}{self.comparison.unit}{least}, so in {won} of "
            f"{len(self.differences)} seeds"
        )


_WORDS = {True: "The claim shows", False: "The claim does not show", None: "The claim is not decided"}


def find(results: Results, comparisons: Iterable[Comparison]) -> tuple[bool | None, str, list[Finding]]:
    """Whether all comparisons show, in a sentence, and each of them. One that fails is enough for "does not show", one
    that is not decided for "is not decided"."""
    findings = []
    for comparison in comparisons:
        high, low = (results.by_seed(*row) for row in (comparison.better, comparison.worse))
        shared = sorted(high.keys() & low.keys())
        findings.append(Finding(comparison, tuple(high[seed] - low[seed] for seed in shared)))
    verdicts = [finding.shows for finding in findings]
    shows = False if False in verdicts else None if None in verdicts else True
    parts = {True: "shows", False: "does not show", None: "is not decided"}
    listed = "; ".join(f"{finding} ({parts[finding.shows]})" for finding in findings)
    return shows, f"{_WORDS[shows]} here. {listed}.", findings
