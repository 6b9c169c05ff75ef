"""`series:NAME`: series of numbers as the UEA and UCR archives have them, in `.ts` files.

JapaneseVowels, BasicMotions and OSULeaf come with aeon (BSD-3), whose data alone are read: it is not imported. `NAME`
may also be a path: `series:DIR/NAME` reads `DIR/NAME_TRAIN.ts` and `DIR/NAME_TEST.ts`.

A sample is (channels, length), floating. Series that are shorter than the longest of both files end in zeros.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from anytimeify.errors import ArtifactError
from anytimeify.io.files import regular_file
from anytimeify.train.data.samples import Data, DataKind, Held

__all__ = ["KIND"]


def load(rest: str) -> Data:
    """The two files of a name."""
    files = _files(rest)
    (train, names, classes), (test, test_names, _) = (_read(path) for path in files)
    classes = classes or tuple(sorted({*names, *test_names}))
    longest = max(one.shape[1] for one in (*train, *test))
    parts = []
    for path, series, labels in zip(files, (train, test), (names, test_names), strict=True):
        unknown = sorted(set(labels) - set(classes))
        if unknown:
            raise ArtifactError(f"{path} is damaged: its class {unknown[0]!r} is none of {', '.join(classes)}")
        inputs = torch.zeros(len(series), len(train[0]), longest)
        for place, one in enumerate(series):
            inputs[place, : len(one), : one.shape[1]] = one
        parts.append(Held(inputs, torch.tensor([classes.index(label) for label in labels])))
    return Data(f"series {Path(rest).name}", parts[0], parts[1], classes)


def _files(name: str) -> tuple[Path, Path]:
    if not name:
        raise ArtifactError("'series' needs a name, such as series:JapaneseVowels, or a path, series:DIR/NAME")
    folders = [Path(name).parent] if "/" in name else []
    found = find_spec("aeon")
    if not folders and found is not None and found.submodule_search_locations:
        folders = [Path(found.submodule_search_locations[0], "datasets", "data", name)]
    if not folders:
        raise ArtifactError(
            f"'series:{name}' is among the data of the package 'aeon', which is not installed. Install it with: pip "
            "install --no-deps aeon; or name files, series:DIR/NAME"
        )
    train, test = (folders[0] / f"{Path(name).name}_{part}.ts" for part in ("TRAIN", "TEST"))
    return train, test


def _read(path: Path) -> tuple[list[Tensor], list[str], tuple[str, ...]]:
    """Series of a file, their classes, and the classes that its head names. Errors name the line."""
    series: list[Tensor] = []
    labels: list[str] = []
    classes: tuple[str, ...] = ()
    inside = False
    with regular_file(path).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith(("#", "%")):
                continue
            if not inside:
                words = line.split()
                inside = words[0].lower() == "@data"
                if words[0].lower() == "@classlabel":
                    classes = tuple(words[2:])
                continue
            *channels, label = line.split(":")
            try:
                rows = [[float(value) for value in channel.replace("?", "nan").split(",")] for channel in channels]
                one = torch.tensor(rows)
            except ValueError as error:
                raise ArtifactError(f"{path} is damaged: line {number} is no series: {str(error)[:100]}") from error
            if one.ndim != 2 or len(one) != (len(series[0]) if series else len(one)):
                raise ArtifactError(f"{path} is damaged: line {number} has {len(one)} channels")
            series.append(one.nan_to_num())
            labels.append(label.strip())
    if not series:
        raise ArtifactError(f"{path} is damaged: it has no series")
    return series, labels, classes


KIND = DataKind("series:NAME", "series of numbers, such as JapaneseVowels", load, "series")
