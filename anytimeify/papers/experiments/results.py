"""Results by seed and network, as lines of JSON; what is looked up in them, and means."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytimeify.errors import ArtifactError

__all__ = ["Results", "Row", "append", "deviation", "read"]


@dataclass(frozen=True)
class Row:
    """A row of the table: one prediction of one level of one network, or one value that was measured, over seeds."""

    network: str
    level: str
    alone: bool
    macs: int | None
    params: int | None
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        return deviation(self.values)


@dataclass(frozen=True)
class Results:
    """What came of the trainings: a dict each, as `results.jsonl` has them.

    Accuracies are in percent, levels in their order; of labels of several granularities a level has several rows.
    """

    lines: tuple[Mapping[str, Any], ...]

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line["network"] for line in self.lines))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({line["seed"] for line in self.lines}))

    def of(self, network: str) -> list[Mapping[str, Any]]:
        """The lines of a network, by seed."""
        return sorted((line for line in self.lines if line["network"] == network), key=lambda line: line["seed"])

    def rows(self) -> Iterator[Row]:
        """Accuracies of all networks and levels."""
        for network in self.networks:
            lines = self.of(network)
            for place, first in enumerate(lines[0]["levels"]):
                values = tuple(line["levels"][place]["accuracy"] for line in lines)
                yield Row(network, first["level"], lines[0]["alone"], first["macs"], first["params"], values)

    def measured(self) -> Iterator[Row]:
        """What was measured besides."""
        for network in self.networks:
            lines = self.of(network)
            for name in lines[0]["values"]:
                values = tuple(line["values"][name] for line in lines)
                yield Row(network, name, lines[0]["alone"], None, None, values)

    def levels(self, network: str) -> list[Row]:
        """The rows of a network, cheapest level first."""
        return [row for row in self.rows() if row.network == network]

    def by_seed(self, network: str, level: int | str) -> dict[int, float]:
        """The accuracy of a row of a network, by its place or name, or what was measured under that name."""
        found: dict[int, float] = {}
        for line in self.of(network):
            if isinstance(level, int):
                found[line["seed"]] = line["levels"][level]["accuracy"]
            elif level in line["values"]:
                found[line["seed"]] = line["values"][level]
            else:
                named = {one["level"]: one["accuracy"] for one in line["levels"]}
                found[line["seed"]] = named[level]
        return found


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds; of one seed there is none."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that `append` wrote; a last one that is not whole, for the run was stopped, is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    *whole, rest = lines
    try:
        found = [json.loads(line) for line in whole if line]
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged: line {error} is no JSON. Remove it, or take another folder."
        ) from error
    if rest:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(rest))
    return found


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, which is on the disk afterwards."""
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
