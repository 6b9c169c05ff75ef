"""Pre-activation residual networks for 32x32 images, 6n + 2 layers, without a parameter in their shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.papers.networks.initialisers import xavier

__all__ = ["PreActivationResNet"]


class PaddedShortcut(nn.Module):
    """2x2 average pooling where the size halves, and channels of zeros.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride). `padding`: zeros on both sides of the input's channels, or
    after them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, padding: Literal["centre", "end"]) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        before = (outputs - inputs) // 2 if padding == "centre" else 0
        self.zeros = (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), self.zeros)


class Block(nn.Module):
    """Norm, ReLU, 3x3 convolution, norm, ReLU, 3x3 convolution; plus the input.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, padding: Literal["centre", "end"]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else PaddedShortcut(inputs, outputs, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        path = self.conv1(self.relu(self.bn1(x)))
        path = self.conv2(self.relu(self.bn2(path)))
        result: Tensor = path + self.shortcut(x)
        return result


class PreActivationResNet(nn.Module):
    """The network of `depth` layers and `widening` times the channels: (N, 3, 32, 32) -> (N, num_classes).

    `layer1`, `layer2` and `layer3` have 16, 32 and 64 times `widening` channels, at 32x32, 16x16 and 8x8. The stem has
    16 whatever `widening` is. A norm and a ReLU follow the last block.

    Parameters
        depth: 6n + 2, for n blocks in a stage.
        widening: k.
        padding: where the shortcuts put their zeros: half of them on each side (`"centre"`), or all after (`"end"`).
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        depth: int = 32,
        widening: int = 1,
        padding: Literal["centre", "end"] = "centre",
        initialise: Callable[[nn.Module], None] = xavier,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(depth - 2, 6)
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: these networks have 6n + 2 layers")
        if padding not in ("centre", "end"):
            raise ValueError(f"padding={padding!r}: expected 'centre' or 'end'")
        narrow, middle, wide = (width * widening for width in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, narrow, repeats, 1, padding)
        self.layer2 = _stage(narrow, middle, repeats, 2, padding)
        self.layer3 = _stage(middle, wide, repeats, 2, padding)
        self.bn = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(wide, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, repeats: int, stride: int, padding: Literal["centre", "end"]) -> nn.Sequential:
    first = Block(inputs, outputs, stride, padding)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, padding) for _ in range(repeats - 1)))
