"""What a factory of a network gives, and tensors for examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "Example", "Factory", "image", "signal", "tokens", "volume"]

BATCH = 2


@dataclass(frozen=True)
class Example:
    """A network with random weights and one call of it.

    `inputs`: a tuple of positional arguments or a mapping of keyword arguments. `batched`: whether the first size of
    the inputs counts samples; where it does not (the nodes of one graph), no other size is tried."""

    model: nn.Module
    inputs: Any
    batched: bool = True


Factory: TypeAlias = Callable[[], Example]


def image(side: int = 64, channels: int = 3) -> Tensor:
    """Square images with values from 0 to 1."""
    return torch.rand(BATCH, channels, side, side)


def volume(side: int = 32, channels: int = 1) -> Tensor:
    """Cubes with values from 0 to 1."""
    return torch.rand(BATCH, channels, side, side, side)


def signal(samples: int, channels: int = 1) -> Tensor:
    """Noise."""
    return torch.randn(BATCH, channels, samples)


def tokens(length: int = 16, words: int = 64) -> Tensor:
    """Indices of words; the first four are left to special ones."""
    return torch.randint(4, words, (BATCH, length))
