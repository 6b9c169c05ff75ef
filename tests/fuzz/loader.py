"""What the harness fuzzes: one `Loader` for each kind of file that the project reads.

A file `loader_*.py` beside this one with a `LOADER` is all that it takes to fuzz another: it is found by being there,
`test_fuzz.py` searches it, and `test_corpus.py` tries what it has `crafted`. A loader says

    make     how to write originals, one folder or file each, into an empty folder; runs once, in the parent process;
    mutate   how to make a case: a copy of an original with something changed, drawn from the generator that is given
             and from nothing else, so that a number stands for a case; helpers are in `mutations.py`;
    load     the public verb under test, on the path of a case;
    results  what has to be the same whenever a load succeeds: tensors and texts by name. They are compared with those
             of the original, unless the mutation also wrote new checksums (`Case.sealed`): then another file was read,
             and all that is asked is that nothing runs, nothing raw is raised and nothing takes for ever;
    crafted  files made by hand that stay in the corpus for ever, by name: functions of the folder of originals and of
             an empty folder, that return a `Case`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Case", "Loader", "Results", "loaders"]

Results: TypeAlias = Mapping[str, Tensor | str]


@dataclass(frozen=True)
class Case:
    """A mutated file or folder."""

    path: Path
    original: str  # the name of what it was made from
    what: str  # what was done to it, for the report
    sealed: bool = False  # whether its checksums fit what it says now


@dataclass(frozen=True)
class Loader:
    """One kind of file, and how it is read."""

    name: str
    make: Callable[[Path], None]
    mutate: Callable[[Random, Path, Path], Case]
    load: Callable[[Path], Any]
    results: Callable[[Any], Results]
    crafted: Mapping[str, Callable[[Path, Path], Case]] = field(default_factory=dict)
    seconds: float = 20.0  # that one load may take
    growth: int = 256 << 20  # bytes that the peak of memory may rise by while one file is read


def loaders() -> dict[str, Loader]:
    """All of them by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("loader_*.py"))
    found: list[Loader] = [importlib.import_module(f"tests.fuzz.{name}").LOADER for name in names]
    return {loader.name: loader for loader in found}
