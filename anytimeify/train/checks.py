"""What the fields of a recipe may hold: what their annotations say."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from anytimeify.errors import ArgumentValueError

__all__ = ["check_fields", "check_range"]

_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_FITS: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
}


def check_fields(recipe: Any) -> None:
    """`ArgumentValueError` for the first field of a dataclass whose value is not of its annotation. A whole number is a
    number too, a list is as good as a tuple, and what is infinite is no number."""
    for name, kind in get_type_hints(type(recipe)).items():
        value = getattr(recipe, name)
        if not _fits(value, kind):
            raise ArgumentValueError(f"{name} is {value!r}: expected {_words(kind)}")


def check_range(recipe: Any, least: float, *names: str, most: float = math.inf) -> None:
    """`ArgumentValueError` for the first of these fields that is a number below `least` or above `most`."""
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not least <= value <= most:
            kind = _words(get_type_hints(type(recipe))[name]).partition(" or ")[0]
            upper = f"{least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise ArgumentValueError(f"{name} is {value!r}: expected {kind}, {upper}")


def _fits(value: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inside
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is tuple:
        items = inside[:1] * len(value) if isinstance(value, list | tuple) and inside[-1] is ... else inside
        return isinstance(value, list | tuple) and len(value) == len(items) and all(map(_fits, value, items))
    return _FITS[kind](value) if kind in _FITS else isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inside)
    if origin is tuple:
        return (
            "a list, each " + _words(inside[0]) if inside[-1] is ... else "a list of " + ", ".join(map(_words, inside))
        )
    return "null" if kind is types.NoneType else _WORDS.get(kind, f"{kind.__name__}(...)")
