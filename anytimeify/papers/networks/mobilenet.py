"""MobileNet: Howard et al. 2017, at the resolution of ImageNet and of CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from anytimeify.papers.networks.initialisers import of_the_layer

__all__ = ["MobileNet"]


class Separable(nn.Module):
    """3x3 depthwise convolution, norm, ReLU, 1x1 convolution, norm, ReLU.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(x)))
        return result


class MobileNet(nn.Module):
    """MobileNet at full width: (N, 3, H, W) -> (N, num_classes).

    `layer1` holds the first five separable convolutions, up to 256 channels; `layer2` the next six, at 512, the five
    alike of them as `layer2.body`; `layer3` the last two, at 1024. `layer2` and `layer3` begin with halving the size.

    Parameters
        early_stride: of the first convolution and of the second and fourth separable one. 2 for 224x224 images; 1 for
            32x32 images, whose size only `layer2` and `layer3` halve.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        early_stride: int = 2,
        initialise: Callable[[nn.Module], None] = of_the_layer,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, early_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(
            Separable(32, 64),
            Separable(64, 128, early_stride),
            Separable(128, 128),
            Separable(128, 256, early_stride),
            Separable(256, 256),
        )
        self.layer2 = _stage(256, 512, repeats=5)
        self.layer3 = _stage(512, 1024, repeats=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, repeats: int) -> nn.Sequential:
    body = nn.Sequential(*(Separable(outputs, outputs) for _ in range(repeats)))
    return nn.Sequential(OrderedDict(down=Separable(inputs, outputs, 2), body=body))
