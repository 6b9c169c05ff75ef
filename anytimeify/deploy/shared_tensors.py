"""A tensor as a part of another one that is there already: how the levels in one file share their weights.

    small = whole[:4, [0, 1, 8, 9]]         ->      Part("conv.weight", (slice(0, 4), array([0, 1, 8, 9])))
    sparse = where(|whole| >= 0.1, whole, 0)  ->      Masked("conv.weight", 0.1)

Parts are found by their values, bit for bit, so that they hold whatever a scheme did with the weights. Names only say
where to look.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["SHARED", "Array", "Masked", "Part", "Pool", "as_array"]

Array: TypeAlias = npt.NDArray[Any]
SHARED = 64  # elements; what has fewer is stored again rather than looked for


@dataclass(frozen=True)
class Part:
    """Some elements of a tensor: along every dimension a range, or places one by one."""

    source: str
    places: tuple[slice | npt.NDArray[np.int64], ...]

    def of(self, whole: Array) -> Array:
        """The elements."""
        for dim, places in enumerate(self.places):
            index = (slice(None),) * dim + (places,)
            whole = whole[index]
        return whole


@dataclass(frozen=True)
class Masked:
    """A tensor with zeros for some elements: those whose magnitude is below a threshold, or those that a mask says."""

    source: str
    kept: float | npt.NDArray[np.bool_]

    def of(self, whole: Array) -> Array:
        """The tensor."""
        kept = np.abs(whole) >= self.kept if isinstance(self.kept, float) else self.kept
        return np.where(kept, whole, np.zeros((), whole.dtype))


@dataclass
class Pool:
    """Tensors by name, of which parts are taken."""

    tensors: dict[str, Array] = field(default_factory=dict)
    _by_content: dict[bytes, str] = field(default_factory=dict)
    _by_stem: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, tensor: Array) -> None:
        """One more tensor to take parts of."""
        self.tensors[name] = tensor
        self._by_content.setdefault(_digest(tensor), name)
        self._by_stem[_stem(name)].append(name)

    def find(self, name: str, tensor: Array) -> Part | Masked | None:
        """The tensor as a part of one that is here; None where there is no such one, or it is not worth the search."""
        if tensor.size < SHARED:
            return None
        same = self._by_content.get(_digest(tensor))
        if same is not None:
            return Part(same, tuple(slice(0, size) for size in tensor.shape))
        for source in self._sources(name):
            whole = self.tensors[source]
            if whole.ndim != tensor.ndim or whole.dtype != tensor.dtype or not _fits(tensor, whole):
                continue
            for find in (_prefix, _masked, _by_values):
                part = find(source, tensor, whole)
                if part is not None and _equal(part.of(whole), tensor):
                    return part
        return None

    def _sources(self, name: str) -> Iterator[str]:
        """Where a part of that name is looked for: the tensor of that name, and those of layers in blocks."""
        if name in self.tensors:
            yield name
        yield from (other for other in self._by_stem[_stem(name)] if other != name)


def as_array(tensor: Tensor) -> Array:
    """The values; those that numpy has no type for as integers of their size."""
    values = tensor.detach().cpu()
    try:
        return values.numpy()
    except TypeError:
        return values.view({1: torch.uint8, 2: torch.int16}[values.element_size()]).numpy()


def _stem(name: str) -> str:
    """`conv.weight` for `conv.weight` and for `conv.0.weight`, one of the blocks of a layer."""
    return re.sub(r"\.\d+(\.[^.]+)$", r"\1", name)


# Where it could be. Whether it is there is for the caller to see.


def _prefix(source: str, tensor: Array, whole: Array) -> Part:
    return Part(source, tuple(slice(0, size) for size in tensor.shape))


def _masked(source: str, tensor: Array, whole: Array) -> Masked | None:
    """By a threshold where magnitudes tell, else by a mask, of which eight elements take a byte."""
    kept = tensor != 0
    if tensor.shape != whole.shape or kept.all() or not np.issubdtype(whole.dtype, np.floating):
        return None
    magnitudes = np.abs(whole)
    lowest = float(magnitudes[kept].min(initial=np.inf))
    return Masked(source, lowest if np.array_equal(magnitudes >= lowest, kept) else kept)


def _by_values(source: str, tensor: Array, whole: Array) -> Part | None:
    """Rows and columns wherever they are: of a layer whose channels come in parts, each of which is a prefix.

    Elements whose value `whole` has only once tell where they are; what they tell may be wrong for the others."""
    values, first, counts = np.unique(whole, return_index=True, return_counts=True)
    once = counts == 1
    values, first = values[once], first[once]
    if not values.size:
        return None
    near = np.minimum(np.searchsorted(values, tensor), values.size - 1)
    known = values[near] == tensor
    at = np.unravel_index(first[near], whole.shape)
    places: list[slice | npt.NDArray[np.int64]] = []
    for dim in range(tensor.ndim):
        others = tuple(other for other in range(tensor.ndim) if other != dim)
        found = np.where(known, at[dim], -1).max(axis=others).astype(np.int64)
        for place in np.flatnonzero(found < 0):  # none of its elements tells: after the one before
            found[place] = found[place - 1] + 1 if place else 0
        if found.max() >= whole.shape[dim]:
            return None
        start = int(found[0])
        run = np.array_equal(found, np.arange(start, start + found.size))
        places.append(slice(start, start + found.size) if run else found)
    return Part(source, tuple(places))


def _fits(tensor: Array, whole: Array) -> bool:
    return all(own <= size for own, size in zip(tensor.shape, whole.shape, strict=True))


def _equal(one: Array, other: Array) -> bool:
    """Bit for bit: a negative zero is not zero, and a NaN is itself."""
    return one.shape == other.shape and _bytes(one) == _bytes(other)


def _digest(tensor: Array) -> bytes:
    return hashlib.sha256(f"{tensor.dtype} {tensor.shape} ".encode() + _bytes(tensor)).digest()


def _bytes(tensor: Array) -> bytes:
    return np.ascontiguousarray(tensor).tobytes()
