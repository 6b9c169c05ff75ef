"""The table of operators: one row for each, and for each version that means something else.

A function gets the inputs of a node in their order, None for one that is left out, and its attributes by their names:
its signature says which it knows and what their defaults are. Two names are ours: `training`, the mode of the network,
and `outputs`, how many outputs are read, up to the last one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from anytimeify.errors import CaptureError

__all__ = ["FAMILIES", "NotReadError", "Row", "rows", "rows_by_operator"]

FAMILIES = (
    *("math", "activation", "reduction", "linear", "shape", "padding", "creation", "indexing", "convolution"),
    *("resize", "norm", "recurrent", "control_flow"),
)


class NotReadError(CaptureError):
    """A node that is not read as it stands. Who runs it adds which."""


@dataclass(frozen=True)
class Row:
    """`operator` as it is from version `since` on."""

    operator: str
    since: int
    function: Callable[..., Any]
    numbers: tuple[int, ...] = ()  # positions of sizes, axes and the like: given as arrays of numbers
    known: tuple[int, ...] = ()  # positions that are given as arrays where they are known
    scalars: bool = False  # an input that is a single number is given as such
    sizes: Callable[..., Any] | None = None  # the same for arrays of sizes, some of which depend on the batch
    flow: bool = False  # is given what runs inner graphs first: see `control_flow`

    @cached_property
    def keywords(self) -> frozenset[str]:
        """Attributes, and what else the function asks for by name."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # a function of torch's that is written in C, and given tensors alone
            return frozenset()
        return frozenset(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)


def rows() -> Iterator[tuple[str, Row]]:
    """All rows with their family."""
    package = __name__.rpartition(".")[0]
    for family in FAMILIES:
        yield from ((family, row) for row in importlib.import_module(f"{package}.{family}").ROWS)


@cache
def rows_by_operator() -> dict[str, tuple[Row, ...]]:
    """The rows of every operator, the newest first."""
    found: dict[str, list[Row]] = {}
    for _, row in rows():
        found.setdefault(row.operator, []).append(row)
    return {name: tuple(sorted(own, key=lambda row: -row.since)) for name, own in found.items()}
