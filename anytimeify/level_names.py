"""How a level is named: by its index, its `Level`, its name, or its number, where the scheme has one number a level."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

from anytimeify.errors import ArgumentError, BudgetError
from anytimeify.ir import Level

__all__ = ["LevelName", "find_level", "parse_level"]

LevelName: TypeAlias = int | float | str | Level
"""An index, negative ones from the last; a `Level`; a name; or, as a float, a level's number, such as its width."""

_ROUNDING = 5e-6  # names have six digits of a number
_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"
_NUMBERED = re.compile(rf"[a-z]+ ({_NUMBER})|({_NUMBER}) [a-z]+")  # "width 0.25", "2 leaves"


def find_level(names: Sequence[str], level: LevelName) -> int:
    """The position of a level, among the names of all levels, cheapest first.

    Raises `BudgetError` where there is no such level, or more than one, and `ArgumentError` for what names no level.
    """
    if isinstance(level, str):
        return _only(level, [place for place, name in enumerate(names) if name == level], names)
    if isinstance(level, float) or _is_real(level):
        value: Any = level
        found = [place for place, number in _numbers(names).items() if abs(value - number) <= _ROUNDING * number]
        return _only(level, found, names)
    index = _as_index(level.index if isinstance(level, Level) else level)
    if index is None:
        raise ArgumentError(
            f"a level is given as {level!r}: expected its index, its name, its number as a float, or one of "
            f"net.levels; levels are {_listed(names)}"
        )
    if not -len(names) <= index < len(names):
        raise BudgetError(f"there is no level {index}: levels are {_listed(names)}")
    return index % len(names)


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


def _numbers(names: Sequence[str]) -> Mapping[int, float]:
    """The numbers of the levels whose name is a word and a number."""
    found = {place: _NUMBERED.fullmatch(name) for place, name in enumerate(names)}
    return {place: float(one[1] or one[2]) for place, one in found.items() if one is not None}


def _only(wanted: object, places: Sequence[int], names: Sequence[str]) -> int:
    if len(places) == 1:
        return places[0]
    which = f"levels {', '.join(map(str, places))} are all called" if places else "there is no level"
    raise BudgetError(f"{which} {wanted!r}: levels are {_listed(names)}")


def _listed(names: Sequence[str]) -> str:
    """`0 (width 0.25) to 2 (width 1)` would hide names that are needed, so all of them, where they are not many."""
    shown = [f"{place} ({name})" for place, name in enumerate(names)]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])
