"""A multi-scale dense network for 32x32 images, after Huang et al. 2018 (MSDNet), with one classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anytimeify.papers.networks.initialisers import fan_out

__all__ = ["MultiScaleDenseNet"]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Scale(nn.Module):
    """One scale of a layer: its input, and after its channels new ones, from itself and from the next finer scale.

    (N, C, H, W), and (N, F, 2H, 2W) where there is a finer scale -> (N, C + growth, H, W).
    """

    def __init__(self, inputs: int, growth: int, finer: int = 0) -> None:
        super().__init__()
        self.same = _convolution(inputs, growth // 2 if finer else growth)
        self.down = _convolution(finer, growth - growth // 2, 2) if finer else None

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        new = [self.same(x)] if self.down is None else [self.same(x), self.down(finer)]
        return torch.cat([x, *new], 1)


class MultiScaleDenseNet(nn.Module):
    """Features of several scales from the first layer on: (N, 3, 32, 32) -> (N, num_classes).

    Scale s of layer l is `layers.<l>.<s>`, the last scale the coarsest. The classifier reads the coarsest scale; what
    it does not read of the last layers is left out. Without bottlenecks.

    Parameters
        layers: how many, after the stem.
        scales: each at half the size of the one before.
        growth: channels that a layer adds to the finest scale; twice as many to every next one.
        stem: channels of the finest scale before the first layer; twice as many of every next one.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        layers: int = 12,
        scales: int = 3,
        growth: int = 6,
        stem: int = 16,
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        channels = [stem * 2**scale for scale in range(scales)]
        self.scales = scales
        self.stem = nn.ModuleList(
            _convolution(*pair, 2 if place else 1)
            for place, pair in enumerate(zip((3, *channels), channels, strict=False))
        )
        self.layers = nn.ModuleList()
        for layer in range(layers):
            finest = max(0, scales - (layers - layer))  # what a later layer, or the classifier, reads
            made = {
                str(scale): Scale(channels[scale], growth * 2**scale, channels[scale - 1] if scale else 0)
                for scale in range(finest, scales)
            }
            self.layers.append(nn.ModuleDict(made))
            channels = [count + growth * 2**scale for scale, count in enumerate(channels)]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        features: list[Tensor] = []
        for convolution in self.stem:
            x = convolution(x)
            features.append(x)
        for layer in self.layers:
            before = features
            features = list(before)
            for place, (name, scale) in enumerate(layer.items()):  # type: ignore[operator]  # a ModuleDict
                index = self.scales - len(layer) + place  # type: ignore[arg-type]  # as above
                features[index] = scale(before[index], *before[index - 1 : index] if name != "0" else ())
        logits: Tensor = self.fc(self.avgpool(features[-1]).flatten(1))
        return logits
