"""Masks by magnitude: how many elements a mask density keeps, and which elements of several tensors are largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["largest", "share_of"]


def share_of(entries: int, density: float) -> int:
    """How many of some elements a mask density keeps: at least one."""
    return max(1, round(entries * density))


@torch.no_grad()
def largest(values: Sequence[Tensor], count: int) -> list[Tensor]:
    """One mask for each tensor: together they keep exactly the `count` elements of largest magnitude.

    Of equal elements the first ones are kept, in the order of the tensors and of their memory, so that the masks of a
    smaller count lie inside those of a larger one. What is not a number counts as infinite.
    """
    flat = torch.cat([_magnitude(value).to(values[0].device) for value in values])
    least = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > least
    equal = (flat == least).nonzero().squeeze(1)
    mask[equal[: count - int(mask.sum())]] = True
    parts = mask.split([value.numel() for value in values])
    return [part.reshape(value.shape).to(value.device).clone() for part, value in zip(parts, values, strict=True)]


def _magnitude(value: Tensor) -> Tensor:
    size = value.detach().abs().flatten()
    wide = size if size.dtype == torch.float64 else size.float()  # half precision has no selection of its own
    return wide.nan_to_num(nan=torch.inf, posinf=torch.inf)
