"""`package.module:factory`: a function of your own that gives the data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from anytimeify.errors import ArtifactError, first_line
from anytimeify.train.data.samples import Data, DataKind, Items, names_of

__all__ = ["KIND"]


def load(spec: str) -> Data:
    """What the factory returns: `Data`, or a dataset to train on and one to test with, whose items are inputs and
    labels. Modules of the current folder are found too."""
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtifactError(f"'{spec}' names no data, and there is no such factory: {first_line(error)}") from error
    finally:
        sys.path.remove(here)
    try:
        return _data(spec, factory())
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"'{spec}' failed with {type(error).__name__}: {first_line(error)}") from error


def _data(spec: str, given: Any) -> Data:
    if isinstance(given, Data):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ArtifactError(
            f"'{spec}' gives {type(given).__name__}: expected Data, or two datasets, to train and to test"
        )
    train, test = map(Items, given)
    names = getattr(given[0], "classes", None)
    if names is None:
        every = torch.arange(len(train))
        names = names_of(1 + max(int(train.take(part)[1].max()) for part in every.split(1000)))
    return Data(spec, train, test, tuple(map(str, names)))


KIND = DataKind("package.module:factory", "a function that gives Data, or two datasets", load)
