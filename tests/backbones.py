"""Small backbones, each with something that is easy to get wrong, and nets made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, NestedChannels, Scheme, transform

__all__ = ["Clashing", "Keywords", "Nested", "Residual", "Shapes", "images", "residual_net"]


class Residual(nn.Module):
    """Convolutions, batch norms, a residual addition, dropout, and a head that nothing uses."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.stem(x)).relu()
        x = x + self.bn2(self.conv(x))
        result: Tensor = self.fc(self.drop(x.relu().mean((2, 3))))
        return result


class Keywords(nn.Module):
    """A flag, and an input that is given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor, double: bool = False) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        return {"hidden": hidden, "logits": self.second(hidden * scale) * (2 if double else 1)}


class Nested(nn.Module):
    """Inputs inside a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, pair: list[Tensor], extra: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.second(self.first(pair[0] + pair[1]).relu()) + extra["bias"]
        return result


class Clashing(nn.Module):
    """Children named like members of `AnytimeModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.loss, self.report = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.axes, self.select = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.report(self.loss(self.levels(x)).relu()).relu()
        result: Tensor = self.select(self.axes(x))
        return result


class Shapes(nn.Module):
    """Predictions for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).relu())
        return result


def images(batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def residual_net(scheme: Scheme | None = None, **options: Any) -> AnytimeModel:
    """A net of three widths whose norms have seen some data, in eval mode."""
    backbone = Residual()
    for seed in range(3):
        backbone(images(16, seed))
    net = transform(backbone, scheme or NestedChannels((0.25, 0.5, 1.0)), images(), **options)
    return net.eval()
