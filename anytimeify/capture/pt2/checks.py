"""Kinds of values that run no code, and how a nested document is compared with a table of them.

A check takes a value and where it stands, and raises `RefusedError`. In a table, besides checks: a string names a row
of the same table, `[spec]` is a list, `{key: spec}` a mapping (the key is a check), `Maybe(spec)` may be null.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "COUNT",
    "INT64",
    "Check",
    "Maybe",
    "Record",
    "RefusedError",
    "Table",
    "Union",
    "boolean",
    "check",
    "dotted",
    "integer",
    "matching",
    "name",
    "number",
    "one_of",
    "prose",
    "quoteless",
]


class RefusedError(ValueError):
    """A part of a file that may run code, or that no genuine file has: where it stands and what is wrong with it."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}" if where else why)


Check: TypeAlias = Callable[[Any, str], None]
Spec: TypeAlias = "str | Check | Maybe | list[Any] | dict[Check, Any]"


@dataclass(frozen=True)
class Maybe:
    """Null, or what the specification says."""

    spec: Any


@dataclass(frozen=True)
class Record:
    """An object with some of these fields and no others."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Union:
    """An object with exactly one of these fields, which says what it is."""

    variants: Mapping[str, Any]


Table: TypeAlias = Mapping[str, Record | Union]


def check(table: Table, spec: Any, value: Any, where: str) -> None:
    """Raises `RefusedError` for the first part of `value` that is not what `spec` says."""
    if isinstance(spec, str):
        _fields(table, table[spec], value, where)
    elif isinstance(spec, Maybe):
        if value is not None:
            check(table, spec.spec, value, where)
    elif isinstance(spec, list):
        for index, item in enumerate(_instance(value, list, where)):
            check(table, spec[0], item, f"{where}[{index}]")
    elif isinstance(spec, dict):
        ((key_check, item_spec),) = spec.items()
        for key, item in _instance(value, dict, where).items():
            key_check(key, f"a name in {where}")
            check(table, item_spec, item, f"{where}.{key}")
    else:
        spec(value, where)


def _fields(table: Table, row: Record | Union, value: Any, where: str) -> None:
    known = row.fields if isinstance(row, Record) else row.variants
    given = _instance(value, dict, where)
    if isinstance(row, Union) and len(given) != 1:
        raise RefusedError(where, f"expected one of {', '.join(known)}, got {len(given)} of them")
    for key, item in given.items():
        if key not in known:
            raise RefusedError(where, f"{shown(key)} is none of the fields that are read: {', '.join(known)}")
        check(table, known[key], item, f"{where}.{key}" if where else key)


def _instance(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise RefusedError(where, f"expected a {kind.__name__}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for a message: its representation, in which nothing is left that a terminal obeys."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value if not isinstance(value, str) else value[:60])
    return text if len(text) <= 80 else f"{text[:80]}..."


def integer(low: int, high: int) -> Check:
    """A whole number within bounds, which are included; no truth value."""

    def checked(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise RefusedError(where, f"expected a whole number from {low} to {high}, got {shown(value)}")

    return checked


INT64 = integer(-(1 << 63), (1 << 63) - 1)
COUNT = integer(0, (1 << 48) - 1)  # of elements: more do not fit into the memory of any machine


def number(value: Any, where: str) -> None:
    """A number; those that JSON has no word for are written as strings."""
    if value not in ("Infinity", "-Infinity", "NaN") and (
        isinstance(value, bool) or not isinstance(value, (int, float))
    ):
        raise RefusedError(where, f"expected a number, got {shown(value)}")
    if type(value) is int:
        INT64(value, where)


def boolean(value: Any, where: str) -> None:
    """True or false."""
    if type(value) is not bool:
        raise RefusedError(where, f"expected true or false, got {shown(value)}")


def one_of(values: Collection[Any], what: str) -> Check:
    """One of a few texts or numbers; `what` they are, for the message."""

    def checked(value: Any, where: str) -> None:
        if type(value) not in (str, int) or value not in values:
            raise RefusedError(where, f"{shown(value)} is no {what} that is read")

    return checked


def matching(pattern: str, what: str) -> Check:
    """Text of which all matches a pattern, ASCII alone."""
    compiled = re.compile(pattern, re.ASCII)

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise RefusedError(where, f"expected {what}, got {shown(value)}")

    return checked


_LONGEST_NAME, _LONGEST_TEXT = 1_000, 1 << 20


def name(value: Any, where: str) -> None:
    """What may become a variable or an argument of generated code: an identifier, and no special method."""
    good = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    if not good or _special(value) or len(value) > _LONGEST_NAME:
        raise RefusedError(where, f"expected an identifier, got {shown(value)}")


def dotted(value: Any, where: str) -> None:
    """The name of a module, a parameter or a buffer (`layers.0.weight`). The parts need not be identifiers (`conv-1`),
    but may not end the string that they become in generated code: `getattr(self, "conv-1")`."""
    quoteless(value, where)
    if len(value) > _LONGEST_NAME or any(map(_special, value.split("."))):
        raise RefusedError(where, f"expected the name of a module or tensor, got {shown(value)}")


def quoteless(value: Any, where: str) -> None:
    """Text that generated code may put between quotes: one line, in which nothing ends a string or begins an escape."""
    if not isinstance(value, str) or not value.isprintable() or not _FORBIDDEN.isdisjoint(value):
        raise RefusedError(where, f"expected text without quotes, backslashes, braces and controls, got {shown(value)}")
    if len(value) > _LONGEST_TEXT:
        raise RefusedError(where, "is longer than 1 MiB")


_FORBIDDEN = frozenset("'\"\\{}`")


def prose(value: Any, where: str) -> None:
    """Text that people read and generated code never holds but through `repr`: no controls but line ends and tabs."""
    if not isinstance(value, str) or not value.replace("\n", "").replace("\t", "").isprintable():
        raise RefusedError(where, f"expected text without control characters, got {shown(value)}")
    if len(value) > _LONGEST_TEXT:
        raise RefusedError(where, "is longer than 1 MiB")


def _special(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")
