"""Densely connected networks for 32x32 images: Huang et al. 2017, without bottlenecks and compression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anytimeify.papers.networks.initialisers import fan_out

__all__ = ["DenseNet"]


class DenseLayer(nn.Module):
    """The input, and after its channels those of norm, ReLU, 3x3 convolution.

    (N, C, H, W) -> (N, C + growth, H, W).
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution to as many channels, 2x2 average pooling: (N, C, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.pool(self.conv(self.relu(self.bn(x))))
        return result


class DenseNet(nn.Module):
    """DenseNet-`depth`-`growth`: (N, 3, 32, 32) -> (N, num_classes).

    `layer1`, `layer2` and `layer3` are the papers' conv2, conv3 and conv4, at 32x32, 16x16 and 8x8, with `transition1`
    and `transition2` between them.

    Parameters
        depth: 3n + 4, for n layers in a block.
        growth: k, channels that a layer adds.
        stem: channels of the first convolution. Papers print 2k; the code that their numbers come from has 16.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        depth: int = 40,
        growth: int = 12,
        stem: int = 16,
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(depth - 4, 3)
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: dense networks without bottlenecks have 3n + 4 layers")
        added = repeats * growth
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.layer1 = _block(stem, growth, repeats)
        self.transition1 = Transition(stem + added)
        self.layer2 = _block(stem + added, growth, repeats)
        self.transition2 = Transition(stem + 2 * added)
        self.layer3 = _block(stem + 2 * added, growth, repeats)
        self.bn = nn.BatchNorm2d(stem + 3 * added)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stem + 3 * added, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.layer1(self.conv1(x)))
        x = self.layer3(self.transition2(self.layer2(x)))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits


def _block(inputs: int, growth: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(inputs + index * growth, growth) for index in range(repeats)))
