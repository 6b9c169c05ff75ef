"""Backbones whose weights are read in ways that are easy to get wrong, and masks counted apart from the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["KINDS", "Attention", "Tied", "TiedLayers", "by_hand"]


class Recurrent(nn.Module):
    """Several matrices in one operation, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(self.embedding(x))[0].mean(1))
        return result


class Tied(nn.Module):
    """A head that is the embedding: no weight of a layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.embedding(x)).mean(1))
        return result


class TiedLayers(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 7)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.first(x).relu()).relu())
        return result


class Normalised(nn.Module):
    """A weight that is computed of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 24))
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x).relu())
        return result


class Attention(nn.Module):
    """A projection that is read in parts, learned queries, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.query, self.norm = nn.Parameter(torch.randn(1, 3, 16)), nn.LayerNorm(16)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(self.query.expand(x.shape[0], -1, -1), x, x)[0]
        result: Tensor = self.head(self.norm(mixed).mean(1))
        return result


class Products(nn.Module):
    """A parameter that is multiplied as it is, and a child with the name that masks have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 24))
        self.masks, self.head = nn.BatchNorm1d(24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.masks(x @ self.weight))
        return result


class Transposed(nn.Module):
    """Grouped, depthwise and transposed convolutions, every pixel a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.up(self.depthwise(self.grouped(x)).relu())
        result: Tensor = self.head(x)
        return result


_IDS, _ROWS = torch.arange(12).view(2, 6), torch.linspace(-1, 1, 32).view(2, 16)
KINDS: Mapping[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "recurrent": (Recurrent, _IDS),
    "tied": (Tied, _IDS),
    "tied layers": (TiedLayers, _ROWS),
    "normalised": (Normalised, _ROWS),
    "attention": (Attention, torch.linspace(-1, 1, 160).view(2, 5, 16)),
    "products": (Products, _ROWS),
    "transposed": (Transposed, torch.linspace(-1, 1, 384).view(2, 3, 8, 8)),
}


def by_hand(weights: Sequence[npt.NDArray[np.float32]], count: int) -> list[npt.NDArray[np.bool_]]:
    """Masks of the `count` largest entries of several arrays, of equal ones the first: by sorting everything."""
    flat = np.concatenate([np.abs(weight).ravel() for weight in weights])
    mask = np.zeros(len(flat), bool)
    mask[np.argsort(-flat, kind="stable")[:count]] = True
    ends = np.cumsum([weight.size for weight in weights])[:-1]
    return [part.reshape(weight.shape) for part, weight in zip(np.split(mask, ends), weights, strict=True)]
