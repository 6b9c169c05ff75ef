"""The tensors of a result, and how far those of two results are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anytimeify._torch import flatten
from anytimeify.capture.compare import difference

__all__ = ["furthest", "tensors"]


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in their places."""
    return [leaf for leaf in flatten(result)[0] if isinstance(leaf, Tensor)]


def furthest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference between tensors in the same places."""
    if len(expected) != len(found):
        return float("inf")
    return max((difference(one, other) for one, other in zip(expected, found, strict=True)), default=0.0)
