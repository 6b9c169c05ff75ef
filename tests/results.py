"""Networks that return more than a prediction, and what is compared of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Detector", "MultiTask", "same"]


class Detector(nn.Module):
    """As YOLO: in training a list of maps, in evaluation decoded boxes beside them, with a grid that it keeps for as
    long as the maps have one shape."""

    shape: torch.Size | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.heads = nn.ModuleList([nn.Conv2d(12, 6, 1), nn.Conv2d(16, 6, 1)])

    def forward(self, x: Tensor) -> Any:
        fine = self.body(self.stem(x))
        maps = [head(one) for head, one in zip(self.heads, (fine, self.down(fine)), strict=True)]
        if self.training:
            return maps
        if self.shape != maps[0].shape:
            self.grid = torch.cat([torch.arange(0.0, one.shape[2] * one.shape[3], device=x.device) for one in maps])
            self.shape = maps[0].shape
        found = torch.cat([one.flatten(2) for one in maps], 2)
        return torch.cat([found[:, :2] + self.grid, found[:, 2:].sigmoid()], 1), maps

    @staticmethod
    def loss(maps: list[Tensor], target: float = 1.0) -> Tensor:
        return torch.stack([(one - target).square().mean() for one in maps]).sum()


class MultiTask(nn.Module):
    """Results of every kind: with the batch first, elsewhere, in several rows and nowhere; integers and constants; one
    tensor twice; views in another order; without parameters."""

    anchors: Tensor
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1)),
            *(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU()),
        )
        self.classes, self.depth, self.embedding = nn.Linear(24, 7), nn.Conv2d(24, 1, 1), nn.Linear(24, 8)
        self.register_buffer("anchors", torch.arange(6.0).view(3, 2))
        self.register_buffer("places", torch.arange(4))

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        pooled = hidden.mean((2, 3))
        embedded = self.embedding(pooled)
        return {
            "classes": self.classes(pooled),
            "depth": self.depth(hidden).transpose(2, 3),
            "pair": (embedded, None),
            "anchors": self.anchors,
            "places": [self.places, embedded],
            "rows": self.depth(hidden).flatten(2).transpose(1, 2).flatten(0, 1),
            "tokens": self.depth(hidden).flatten(2).permute(2, 0, 1),
            "penalty": self.embedding.weight.square().sum(),
            "count": 3,
            "empty": [],
        }


def same(one: Any, other: Any) -> None:
    """Asserts that two results have one structure, equal constants, and equal tensors but for rounding."""
    (leaves, spec), (others, second) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert spec == second
    for leaf, found in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            torch.testing.assert_close(found, leaf, rtol=1e-4, atol=1e-5)
        else:
            assert found == leaf
