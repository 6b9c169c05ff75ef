"""The tensors of a result, and how far those of two results are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anytimeify._torch import flatten
from anytimeify.capture.compare import difference

__all__ = ["equal", "furthest", "largest", "tensors"]


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in their places."""
    return [leaf for leaf in flatten(result)[0] if isinstance(leaf, Tensor)]


def largest(tensor: Tensor) -> float:
    """The largest magnitude; infinite or NaN where there is an element that is. 0 of a tensor without elements."""
    if not tensor.numel():
        return 0.0
    if tensor.is_complex():
        return float(tensor.abs().max())
    low, high = map(float, torch.aminmax(tensor.detach()))  # both are NaN where an element is
    return math.nan if math.isnan(low) else max(abs(low), abs(high))


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether they have the same elements, bit for bit, and are of one type."""
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def furthest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference between tensors in the same places."""
    if len(expected) != len(found):
        return float("inf")
    return max((difference(one, other) for one, other in zip(expected, found, strict=True)), default=0.0)
