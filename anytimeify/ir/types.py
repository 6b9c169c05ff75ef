"""Sizes, and the types of tensors that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

__all__ = ["Size", "TensorType", "type_text"]


@dataclass(frozen=True, order=True)
class Size:
    """A tensor size as a monomial: `coefficient` times a product of symbols. `Size(64, ("s0",))` prints as `64*s0`.

    A symbol stands for a dynamic size (the batch), or for any expression of dynamic sizes that is not a monomial.
    """

    coefficient: int
    symbols: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        return not self.symbols

    def __mul__(self, other: Size) -> Size:
        return Size(self.coefficient * other.coefficient, tuple(sorted(self.symbols + other.symbols)))

    def divides(self, other: Size) -> bool:
        """Whether `other` is a whole multiple of this size."""
        if self.coefficient == 0 or other.coefficient % self.coefficient:
            return False
        rest = list(other.symbols)
        for symbol in self.symbols:
            if symbol not in rest:
                return False
            rest.remove(symbol)
        return True

    def __floordiv__(self, other: Size) -> Size:
        if not other.divides(self):
            raise ValueError(f"{other} does not divide {self}")
        rest = list(self.symbols)
        for symbol in other.symbols:
            rest.remove(symbol)
        return Size(self.coefficient // other.coefficient, tuple(rest))

    def __str__(self) -> str:
        return "*".join(
            [str(self.coefficient), *self.symbols] if self.coefficient != 1 or not self.symbols else self.symbols
        )

    @staticmethod
    def parse(text: str) -> Size:
        """The inverse of `str`."""
        head, *rest = text.split("*")
        return Size(int(head), tuple(rest)) if head.isdigit() else Size(1, (head, *rest))


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor without running anything: `node.meta["type"]`.

    Nodes that give several tensors carry a tuple of types (`None` for what is not a tensor), nodes that give an
    integer carry its `Size`.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype

    @cached_property
    def _hash(self) -> int:
        return hash((self.shape, self.dtype))

    def __hash__(self) -> int:
        return self._hash  # types are looked up all the time

    def __reduce__(self) -> tuple[type[TensorType], tuple[tuple[Size, ...], torch.dtype]]:
        return TensorType, (self.shape, self.dtype)  # hashes of names differ from process to process

    @property
    def size(self) -> Size:
        return math.prod(self.shape, start=Size(1))

    def with_shape(self, shape: tuple[Size, ...]) -> TensorType:
        return replace(self, shape=shape)


def type_text(kind: Any) -> str:
    """A type as programs print it: `[s0, 64] int64`; float32 is left out."""
    if isinstance(kind, TensorType):
        dtype = "" if kind.dtype is torch.float32 else f" {str(kind.dtype).removeprefix('torch.')}"
        return f"[{', '.join(map(str, kind.shape))}]{dtype}"
    return f"({', '.join(map(type_text, kind))})" if isinstance(kind, tuple) else str(kind)
