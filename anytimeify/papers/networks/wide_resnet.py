"""Wide residual networks for 32x32 images: Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from anytimeify.papers.networks.initialisers import fan_out

__all__ = ["WideResNet"]


class PreActivation(nn.Module):
    """Norm, ReLU, 3x3 convolution, norm, ReLU, dropout, 3x3 convolution; plus the input.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride). Where the shapes differ, the shortcut is a 1x1 convolution of
    the normed and activated input, without a norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        projected = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        path = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(activated)))))
        result: Tensor = path + (x if self.shortcut is None else self.shortcut(activated))
        return result


class WideResNet(nn.Module):
    """WRN-`depth`-`widening`: (N, 3, 32, 32) -> (N, num_classes).

    `layer1`, `layer2` and `layer3` are the papers' conv2, conv3 and conv4: widths 16, 32 and 64 times `widening` at
    32x32, 16x16 and 8x8. A norm and a ReLU follow the last of them.

    Parameters
        depth: 6n + 4, for n blocks in a stage.
        widening: k.
        dropout: rate between the two convolutions of a block; 0.3 is the papers' variant.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        depth: int = 28,
        widening: int = 10,
        dropout: float = 0.0,
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(depth - 4, 6)
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: wide residual networks have 6n + 4 layers")
        narrow, middle, wide = (width * widening for width in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, narrow, repeats, 1, dropout)
        self.layer2 = _stage(narrow, middle, repeats, 2, dropout)
        self.layer3 = _stage(middle, wide, repeats, 2, dropout)
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


def _stage(inputs: int, outputs: int, repeats: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivation(inputs, outputs, stride, dropout=dropout)
    return nn.Sequential(first, *(PreActivation(outputs, outputs, dropout=dropout) for _ in range(repeats - 1)))
