"""How often every level of a model is right, by granularity where there is a taxonomy.

print(accuracy(net, batches))
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anytimeify.capture.modes import in_mode
from anytimeify.codegen.call_signature import batch_arguments
from anytimeify.errors import ArgumentError, ArgumentValueError, ArtifactError
from anytimeify.io.files import reading, regular_file
from anytimeify.level_names import LevelName, find_level
from anytimeify.report.tables import Table, Tables, in_percent
from anytimeify.runtime.model import AnytimeModel

__all__ = ["Accuracies", "AccuracyRow", "accuracy", "read_scores"]


@dataclass(frozen=True)
class AccuracyRow:
    """One level at one granularity. `head`: which prediction was read: that of the granularity itself, or a finer one,
    of which the class above counts. Without a taxonomy both are called `labels`."""

    level: int
    name: str
    granularity: str
    head: str
    accuracy: float
    number: float | None = None  # of the level, where the scheme has one number a level


@dataclass(frozen=True)
class Accuracies(Tables):
    """Accuracies from 0 to 1, over `samples` labels."""

    rows: tuple[AccuracyRow, ...]
    samples: int

    def of(self, level: LevelName, granularity: str = "labels", head: str | None = None) -> float:
        """One of them; by default of the prediction that is of this granularity itself. `KeyError` if there is none,
        `BudgetError` if there is no such level."""
        levels = {row.level: row for row in self.rows}
        wanted = (
            find_level([levels[index] for index in sorted(levels)], level),
            granularity,
            granularity if head is None else head,
        )
        for row in self.rows:
            if (row.level, row.granularity, row.head) == wanted:
                return row.accuracy
        raise KeyError(wanted)

    def scores(self) -> dict[str, float]:
        """The accuracy of every level by its name, of its own prediction of the finest granularity that it has."""
        own = [row for row in reversed(self.rows) if row.granularity == row.head]
        return {row.name: row.accuracy for row in own}

    def title(self) -> str:
        return f"Accuracy over {self.samples:,} labels"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        kinds = list(dict.fromkeys((row.granularity, row.head) for row in self.rows))
        levels = dict.fromkeys((row.level, row.name) for row in self.rows)
        known = {(row.level, row.granularity, row.head): in_percent(row.accuracy) for row in self.rows}
        yield Table(
            "Levels",
            (">level", "name", *(f">{one if one == head else f'{one} of {head}'}" for one, head in kinds)),
            tuple((str(level), name, *(known.get((level, *kind), "") for kind in kinds)) for level, name in levels),
        )


def read_scores(path: str | os.PathLike[str]) -> dict[str, float]:
    """Accuracies by the names of levels, from a JSON file: of such pairs, or what `accuracy(...).to_json()` gave.
    `ArtifactError` for another file."""
    file = regular_file(path)
    with reading(file):
        document = json.loads(file.read_text(encoding="utf-8"))
        if "rows" in document:
            rows = tuple(AccuracyRow(**row) for row in document["rows"])
            document = Accuracies(rows, int(document["samples"])).scores()
        scores = {str(name): float(score) for name, score in document.items()}
        if not all(0 <= score <= 1 for score in scores.values()):
            raise ArtifactError(f"{file} holds {scores}: expected accuracies from 0 to 1 by the names of levels")
        return scores


def accuracy(net: AnytimeModel, batches: Iterable[Any]) -> Accuracies:
    """The share of labels that every level predicts right, over batches of inputs and a target, as a data loader gives
    them, in eval mode. Training flags are afterwards as before.

    With a taxonomy: of every granularity that a level predicts, and of the coarser ones by the class above the finer
    prediction. The target has the finest labels, or is a tuple of those of every granularity. Negative labels do not
    count.
    """
    right: dict[tuple[int, str, str], int] = {}
    samples = 0
    with in_mode(net, training=False), torch.no_grad():
        for batch in batches:
            outputs, target = _run(net, batch)
            labels = _labels(net, target)
            samples += int((labels[0] >= 0).sum())
            for key, found in _found(net, outputs.levels, labels):
                right[key] = right.get(key, 0) + found
    if not samples:
        raise ArgumentValueError("accuracy was given no labels: pass batches of inputs and a target")
    levels = net.levels
    rows = [
        AccuracyRow(level, levels[level].name, granularity, head, count / samples, levels[level].number)
        for (level, granularity, head), count in right.items()
    ]
    return Accuracies(tuple(rows), samples)


def _run(net: AnytimeModel, batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ArgumentError("a batch is expected to be the inputs, then the target: (inputs, target)")
    *inputs, target = batch
    given = inputs[0] if len(inputs) == 1 else tuple(inputs)
    args, kwargs = batch_arguments(given, len(net.call_signature.parameters))
    return net(*args, **kwargs), target


def _labels(net: AnytimeModel, target: Any) -> tuple[Tensor, ...]:
    given = tuple(target) if isinstance(target, tuple | list) else (target,)
    if any(one.is_floating_point() for one in given):
        raise ArgumentValueError("the target holds class probabilities: accuracy counts class indices, (N,)")
    return net.taxonomy.targets(target) if net.taxonomy is not None and isinstance(target, Tensor) else given


def _found(
    net: AnytimeModel, levels: Sequence[Any], labels: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, str, str], int]]:
    """How many are right, by level, granularity, and the prediction that was read."""
    taxonomy = net.taxonomy
    for index, level in enumerate(levels):
        if taxonomy is None:
            yield (index, "labels", "labels"), _right(level.argmax(1), labels[0])
            continue
        for name, prediction in zip(net.granularities[index], level, strict=True):
            classes = prediction.argmax(1)
            yield (index, name, name), _right(classes, labels[taxonomy.index(name)])
            for place in range(taxonomy.index(name), len(taxonomy.parents)):
                classes = torch.tensor(taxonomy.parents[place], device=classes.device)[classes]
                yield (index, taxonomy.granularities[place + 1], name), _right(classes, labels[place + 1])


def _right(classes: Tensor, labels: Tensor) -> int:
    return int(((classes == labels) & (labels >= 0)).sum())
