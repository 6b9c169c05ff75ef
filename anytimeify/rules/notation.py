"""Factor notation: what an operation does to the axes of its operands, in one line. Knows no tensors.

    n (g i) h w, (g o) i kh kw, (g o) -> n (g o) p q

Operands are separated by commas, dimensions by spaces. `(a b)` is a product, outermost factor first; `(a + b)` a
concatenation; `...` any number of dimensions (broadcast between operands); `1` a dimension of size one; `c~` says that
the operation mixes along `c` though `c` passes through (a normalisation). Several results are separated by commas too.

A factor that occurs only once in the whole line is one that the operation consumes or makes out of nothing: a spatial
position, a kernel offset, a vocabulary. Such factors are pinned. A factor that the operands share and the result lacks
is contracted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

__all__ = ["Concat", "Name", "Notation", "NotationError", "Pattern", "Term", "parse"]


class NotationError(ValueError):
    """A malformed line; quotes it and points at the place."""


@dataclass(frozen=True)
class Name:
    """One factor."""

    name: str
    mixed: bool = False


@dataclass(frozen=True)
class Compound:
    """`(a b)`, outermost first."""

    parts: tuple[Term, ...]


@dataclass(frozen=True)
class Concat:
    """`(a + b)`."""

    parts: tuple[Term, ...]


@dataclass(frozen=True)
class Dots:
    """`...`"""


@dataclass(frozen=True)
class Single:
    """`1`"""


Term: TypeAlias = Name | Compound | Concat | Dots | Single
Pattern: TypeAlias = tuple[Term, ...]


@dataclass(frozen=True)
class Notation:
    """A parsed line: a pattern per operand and per result."""

    text: str
    operands: tuple[Pattern, ...]
    results: tuple[Pattern, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(name.name for pattern in (*self.operands, *self.results) for name in names(pattern))

    @cached_property
    def positions(self) -> frozenset[str]:
        """Factors that occur once: consumed or made by the operation."""
        return frozenset(name for name, count in self.counts.items() if count == 1)

    def __hash__(self) -> int:
        return hash(self.text)  # notations are looked up all the time

    @cached_property
    def contracted(self) -> frozenset[str]:
        """Factors that two operands share and no result has."""
        kept = {name.name for pattern in self.results for name in names(pattern)}
        return frozenset(name for name, count in self.counts.items() if count > 1 and name not in kept)

    @cached_property
    def mixed(self) -> frozenset[str]:
        """Factors that pass through but along which values are mixed."""
        return frozenset(n.name for pattern in (*self.operands, *self.results) for n in names(pattern) if n.mixed)


def names(terms: Pattern) -> Iterator[Name]:
    """Every occurrence of a factor in a pattern, left to right."""
    for term in terms:
        if isinstance(term, Name):
            yield term
        elif isinstance(term, Compound | Concat):
            yield from names(term.parts)


_TOKEN = re.compile(r"\s*(?:(?P<dots>\.\.\.)|(?P<name>[A-Za-z_]\w*~?)|(?P<one>1)|(?P<mark>[()+]))")


def parse(text: str) -> Notation:
    """Parse one line. Raises `NotationError` quoting the line and the place."""
    sides = text.split("->")
    if len(sides) != 2:
        raise NotationError(f"'{text}': expected exactly one '->'")
    operands = tuple(_pattern(part, text) for part in sides[0].split(","))
    results = tuple(_pattern(part, text) for part in sides[1].split(","))
    return Notation(text, operands, results)


def _pattern(part: str, text: str) -> Pattern:
    tokens: list[str] = []
    position = 0
    while part[position:].strip():
        match = _TOKEN.match(part, position)
        if match is None:
            raise NotationError(f"'{text}': cannot read '{part[position:].strip()}'")
        tokens.append(match.group().strip())
        position = match.end()
    terms, rest = _terms(tokens, text, nested=False)
    if rest:
        raise NotationError(f"'{text}': unmatched ')'")
    if sum(isinstance(term, Dots) for term in terms) > 1:
        raise NotationError(f"'{text}': '...' twice in '{part.strip()}'")
    return tuple(terms)


def _terms(tokens: list[str], text: str, *, nested: bool) -> tuple[list[Term], list[str]]:
    terms: list[Term] = []
    while tokens:
        token, tokens = tokens[0], tokens[1:]
        if token == ")":
            if not nested:
                raise NotationError(f"'{text}': unmatched ')'")
            return terms, tokens
        if token == "(":
            plus = _is_sum(tokens)
            inner, tokens = _terms([t for t in tokens if t != "+"] if plus else tokens, text, nested=True)
            if not inner:
                raise NotationError(f"'{text}': empty '()'")
            terms.append(Concat(tuple(inner)) if plus else Compound(tuple(inner)))
        elif token == "...":
            if nested:
                raise NotationError(f"'{text}': '...' inside '()'")
            terms.append(Dots())
        elif token == "1":
            terms.append(Single())
        elif token == "+":
            raise NotationError(f"'{text}': '+' outside '()' or between products; nest them")
        else:
            terms.append(Name(token.removesuffix("~"), token.endswith("~")))
    if nested:
        raise NotationError(f"'{text}': unmatched '('")
    return terms, tokens


def _is_sum(tokens: list[str]) -> bool:
    """Whether the bracket that has just been opened holds a '+' at its own depth."""
    depth = 0
    for token in tokens:
        if token == ")" and depth == 0:
            return False
        depth += {"(": 1, ")": -1}.get(token, 0)
        if token == "+" and depth == 0:
            return True
    return False
