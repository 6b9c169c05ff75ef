"""Backbones whose every stage can be built with other repeats and widths, to compare branches with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KINDS", "Dense", "Padded", "PreActivation", "Projected", "Separable", "images"]


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Staged(nn.Module):
    """A stem, three stages of blocks (the second and third halve the resolution), and a classifier."""

    stage1: nn.Module
    stage2: nn.Module
    stage3: nn.Module

    def __init__(
        self, repeats: Sequence[int] = (2, 3, 3), widths: Sequence[int] = (8, 16, 32), classes: int = 5
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        channels = widths[0]
        for index, (count, width) in enumerate(zip(repeats, widths, strict=True), start=1):
            blocks = []
            for number in range(count):
                blocks.append(self.block(channels, width, 2 if index > 1 and number == 0 else 1))
                channels = self.after(channels, width)
            setattr(self, f"stage{index}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        raise NotImplementedError

    def after(self, channels: int, width: int) -> int:
        return width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        result: Tensor = self.head(self.norm(x).relu().mean((2, 3)))
        return result


class Basic(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, *, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - channels
        self.project = None if padded or channels == width else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        short = x
        if self.project is not None:
            short = self.project(x)
        elif self.stride > 1:
            short = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.extra))
        return torch.relu(short + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())))


class Projected(Staged):
    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        return Basic(channels, width, stride, padded=False)


class Padded(Staged):
    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        return Basic(channels, width, stride, padded=True)


class PreActivation(Staged):
    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.project = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else None

        def forward(self, x: Tensor) -> Tensor:
            first = self.bn1(x).relu()
            short = x if self.project is None else self.project(first)
            result: Tensor = short + self.conv2(self.bn2(self.conv1(first)).relu())
            return result

    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        return self.Block(channels, width, stride)


class Separable(Staged):
    """Depthwise and pointwise convolutions in a chain, no shortcuts."""

    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )


class Dense(Staged):
    """Dense layers: each appends `width` channels to what it reads. Transitions stand before the stages."""

    class Layer(nn.Module):
        def __init__(self, channels: int, growth: int, stride: int) -> None:
            super().__init__()
            self.norm, self.stride = nn.BatchNorm2d(channels), stride
            self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(self.norm(x).relu())], 1)

    def block(self, channels: int, width: int, stride: int) -> nn.Module:
        return self.Layer(channels, width, stride)

    def after(self, channels: int, width: int) -> int:
        return channels + width

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stage1(self.stem(x)), 2)
        x = self.stage3(F.avg_pool2d(self.stage2(x), 2))
        result: Tensor = self.head(self.norm(x).relu().mean((2, 3)))
        return result


KINDS: tuple[type[Staged], ...] = (Projected, Padded, PreActivation, Separable, Dense)
