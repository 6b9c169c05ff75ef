"""How a level is named: by its index, its `Level`, its name, or its number, where the scheme has one number a level."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias

from anytimeify.errors import ArgumentError, BudgetError

__all__ = ["LevelName", "find_level", "parse_level"]

LevelName: TypeAlias = "int | float | str | Indexed"
"""An index, negative ones from the last; a `Level`; a name; or, as a float, a level's number, such as its width."""

_ROUNDING = 5e-6  # names, from which a number may have been copied, have six digits of it


class Indexed(Protocol):
    """A level that knows which one it is, as `Level` does."""

    @property
    def index(self) -> int: ...


class Named(Protocol):
    """What levels are found by: `Level`, and whatever else has a level's name and number."""

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> float | None: ...


def find_level(levels: Sequence[Named], level: LevelName) -> int:
    """The position of a level among all levels, cheapest first.

    Raises `BudgetError` where there is no such level, or more than one, and `ArgumentError` for what names no level.
    """
    if isinstance(level, str):
        return _only(level, [place for place, one in enumerate(levels) if one.name == level], levels)
    if isinstance(level, float) or _is_real(level):
        value: Any = level
        numbers = ((place, one.number) for place, one in enumerate(levels))
        found = [place for place, number in numbers if number is not None and abs(value - number) <= _ROUNDING * number]
        return _only(level, found, levels)
    index = _as_index(level)
    if index is None:
        index = _as_index(getattr(level, "index", None))
    if index is None:
        raise ArgumentError(
            f"a level is given as {level!r}: expected its index, its name, its number as a float, or one of "
            f"net.levels; levels are {_listed(levels)}"
        )
    if not -len(levels) <= index < len(levels):
        raise BudgetError(f"there is no level {index}: levels are {_listed(levels)}")
    return index % len(levels)


def parse_level(text: str) -> int | float | str:
    """A level as it is typed: `"1"` is an index, `"0.25"` and `"1.0"` are numbers, all else is a name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_index(level: object) -> int | None:
    """Whole numbers of Python, numpy and torch."""
    if isinstance(level, bool) or not hasattr(level, "__index__"):
        return None
    try:
        return operator.index(level)
    except TypeError:  # a tensor of another type
        return None


def _is_real(level: Any) -> bool:
    """Numbers of numpy that are not whole."""
    return isinstance(level, Real) and not isinstance(level, Integral)


def _only(wanted: object, places: Sequence[int], levels: Sequence[Named]) -> int:
    if len(places) == 1:
        return places[0]
    which = f"levels {', '.join(map(str, places))} are all called" if places else "there is no level"
    raise BudgetError(f"{which} {wanted!r}: levels are {_listed(levels)}")


def _listed(levels: Sequence[Named]) -> str:
    """`0 (width 0.25) to 2 (width 1)` would hide names that are needed, so all of them, where they are not many."""
    shown = [f"{place} ({one.name})" for place, one in enumerate(levels)]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])
