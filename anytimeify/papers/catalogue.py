"""Finds the networks of the papers. A file beside this one with `ENTRIES` is enough to be found."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from anytimeify.errors import AnytimeError
from anytimeify.papers.recipe import Entry, Recipe

__all__ = ["entries", "names", "recipe"]


@cache
def _catalogue() -> dict[str, Entry]:
    package = __name__.rpartition(".")[0]
    beside = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"{package}.{name}") for name in beside]
    return {entry.name: entry for module in modules for entry in getattr(module, "ENTRIES", ())}


def entries() -> tuple[Entry, ...]:
    """All networks, paper after paper, without building any."""
    return tuple(_catalogue().values())


def names() -> tuple[str, ...]:
    """What `recipe` takes, such as `hne/resnet50-cifar`."""
    return tuple(_catalogue())


def recipe(name: str, num_classes: int | None = None) -> Recipe:
    """The network of that name: backbone, scheme, example inputs, objective, training; `.build()` transforms it.

    `num_classes`: by default that of the data that the paper reports first. Raises `AnytimeError` for a name that is
    none, with those that are near, and for a number of classes that is not 1 or more.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise AnytimeError(f"num_classes={num_classes!r}: expected a whole number, 1 or more")
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3) or [other for other in known if name and name in other]
        listed = f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(known)}"
        raise AnytimeError(f"'{name}' is no network of the papers; {listed}")
    return _catalogue()[name].recipe(num_classes)
