"""Residual networks for 32x32 images: He et al. 2016, "Deep residual learning", section 4.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.papers.networks.initialisers import fan_out

__all__ = ["CifarResNet"]


class ZeroPaddedShortcut(nn.Module):
    """Option A: 2x2 average pooling where the size halves, and channels of zeros after those of the input.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride), without parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.zeros = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.zeros))


class Basic(nn.Module):
    """Two 3x3 convolutions; (N, inputs, H, W) -> (N, width, H/stride, W/stride)."""

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else ZeroPaddedShortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        path = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(path)) + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3, 1x1 to four times `width`; (N, inputs, H, W) -> (N, 4 * width, H/stride, W/stride)."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ZeroPaddedShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        path = self.relu(self.bn1(self.conv1(x)))
        path = self.relu(self.bn2(self.conv2(path)))
        result: Tensor = self.relu(self.bn3(self.conv3(path)) + self.shortcut(x))
        return result


class CifarResNet(nn.Module):
    """The network of `depth` layers: (N, 3, 32, 32) -> (N, num_classes).

    `layer1`, `layer2` and `layer3` are the papers' conv2, conv3 and conv4, of widths 16, 32 and 64, at 32x32, 16x16 and
    8x8.

    Parameters
        block: `"basic"`, with depth 6n + 2, or `"bottleneck"`, with depth 9n + 2, four times as many channels after
            every block; the shortcuts have no parameters in both.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        depth: int = 32,
        block: Literal["basic", "bottleneck"] = "basic",
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        kinds: dict[str, type[Basic] | type[Bottleneck]] = {"basic": Basic, "bottleneck": Bottleneck}
        kind = kinds[block]
        repeats, rest = divmod(depth - 2, 6 if kind is Basic else 9)
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: {block} blocks make networks of {6 if kind is Basic else 9}n + 2 layers")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(kind, 16, 16, repeats)
        self.layer2 = _stage(kind, 16 * kind.EXPANSION, 32, repeats, stride=2)
        self.layer3 = _stage(kind, 32 * kind.EXPANSION, 64, repeats, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * kind.EXPANSION, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    kind: type[Basic] | type[Bottleneck], inputs: int, width: int, repeats: int, stride: int = 1
) -> nn.Sequential:
    first = kind(inputs, width, stride)
    return nn.Sequential(first, *(kind(width * kind.EXPANSION, width) for _ in range(repeats - 1)))
