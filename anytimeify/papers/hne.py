"""Hierarchical neural ensembles: the networks of Ruiz and Verbeek 2020, "Distilled hierarchical neural ensembles".

The backbones are what one leaf and its ancestors compute: plain networks with one path, in the channels that the
paper's tables print per branch. `blocks.0`, `blocks.1`, ... are the paper's blocks; where the paper branches, a block
ends, so the cuts of its tree are after `blocks.0` to `blocks.3` (ResNet) and `blocks.0` to `blocks.2` (MobileNetV2).

What the paper leaves open, and is an option here with the default that fits its printed costs: the width inside a
bottleneck (`mid_ratio`), whether its 3x3 convolution is depthwise alone or separable (`separable`), and the stride of
the last block, printed as 2 where the printed resolutions need 1 (`last_stride`). Norms come after convolutions, and
activations after norms and additions.

Objectives are the sums that the paper prints, N cross-entropies of leaves against B distillations. What all leaves
share then gets N times the gradient of one network: where the printed learning rate is too large for that, take the
means, `HierarchicalCoDistillation()`, which divide both sums by the number of their terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from anytimeify.losses import HierarchicalCoDistillation
from anytimeify.papers.recipe import Entry
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["ENTRIES", "Bottleneck", "InvertedResidual", "MobileNetV2", "ResNet50"]

# Weights are those that the layers of torch draw themselves: the paper names no initialiser, and so the branches that
# a scheme adds, which draw theirs the same way, start like the first one.


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution without a bias that keeps the size (but for its stride), batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Bottleneck(nn.Module):
    """The paper's residual layer: 1x1, norm, ReLU, 3x3 depthwise, norm, ReLU, 1x1, norm; plus its input; ReLU.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride). `middle`: channels of the 3x3 convolution; `separable`: a
    1x1 convolution follows it before the norm; `projection`: the shortcut is a 1x1 convolution and norm (the paper's
    branching layers) instead of the input.
    """

    def __init__(
        self, inputs: int, outputs: int, middle: int, stride: int = 1, *, separable: bool, projection: bool
    ) -> None:
        super().__init__()
        spatial: list[nn.Module] = [nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)]
        if separable:
            spatial.append(nn.Conv2d(middle, middle, 1, bias=False))
        self.path = nn.Sequential(
            _convolution(inputs, middle, activation=nn.ReLU),
            nn.Sequential(*spatial, nn.BatchNorm2d(middle), nn.ReLU()),
            _convolution(middle, outputs),
        )
        self.shortcut = _convolution(inputs, outputs, stride=stride) if projection else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.path(x) + self.shortcut(x))
        return result


class ResNet50(nn.Module):
    """One path of the paper's ResNet-50 for 32x32 images (Table 2): (N, 3, 32, 32) -> (N, num_classes).

    50 layers: the 3x3 stem, 16 bottlenecks of three, the classifier; the 1x1 stem is not counted.

    Parameters
        width: multiplies every channel count but those of image and classes; 0.5 is the paper's small network.
        mid_ratio: channels inside a bottleneck, as a part of those that leave it.
        separable: whether the depthwise convolutions are followed by 1x1 ones.
        last_stride: of `blocks.4`.
        layers: of the four blocks behind the stem, for small experiments; as printed by default.
    """

    # channels and stride of the blocks after the stem
    BLOCKS = ((64, 1), (128, 2), (256, 2), (256, 1))

    def __init__(
        self,
        num_classes: int = 10,
        *,
        width: float = 1.0,
        mid_ratio: float = 0.25,
        separable: bool = False,
        last_stride: int = 1,
        layers: Sequence[int] = (3, 4, 4, 5),
    ) -> None:
        super().__init__()
        stem, channels = round(16 * width), round(64 * width)
        blocks = [
            nn.Sequential(
                _convolution(3, stem, 3, activation=nn.ReLU), _convolution(stem, channels, activation=nn.ReLU)
            )
        ]
        for index, ((unscaled, printed), repeats) in enumerate(zip(self.BLOCKS, layers, strict=True), 1):
            outputs, stride = round(unscaled * width), last_stride if index == len(self.BLOCKS) else printed
            layer = partial(Bottleneck, outputs=outputs, middle=round(outputs * mid_ratio), separable=separable)
            first = layer(channels, stride=stride, projection=True)
            blocks.append(nn.Sequential(first, *(layer(outputs, projection=False) for _ in range(repeats - 1))))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.blocks(x)).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """The layer of MobileNetV2: 1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 without an activation.

    (N, inputs, H, W) -> (N, outputs, H/stride, W/stride); plus its input where the shapes are equal. Activations are
    ReLU6.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.path = nn.Sequential(
            _convolution(inputs, hidden, activation=nn.ReLU6),
            _convolution(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6),
            _convolution(hidden, outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.path(x)
        return x + result if self.residual else result


class MobileNetV2(nn.Module):
    """One path of the paper's MobileNetV2 (Table 3): (N, 3, 224, 224) -> (N, num_classes).

    `expansion`: t of the inverted residuals, which the paper does not print.
    """

    # channels, stride of the first layer, and number of layers: inverted residuals of the blocks
    BLOCKS = (((24, 2, 2),), ((24, 2, 3),), ((48, 2, 4), (72, 1, 3)), ((120, 2, 3),))

    def __init__(self, num_classes: int = 1000, *, expansion: int = 6) -> None:
        super().__init__()
        channels = 16
        blocks: list[list[nn.Module]] = [[] for _ in self.BLOCKS]
        blocks[0] = [
            _convolution(3, channels, 3, stride=2, activation=nn.ReLU6),
            _convolution(channels, channels, activation=nn.ReLU6),
        ]
        for layers, rows in zip(blocks, self.BLOCKS, strict=True):
            for outputs, stride, repeats in rows:
                for index in range(repeats):
                    layers.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion=expansion))
                    channels = outputs
        blocks[-1].append(_convolution(channels, 720, activation=nn.ReLU6))
        self.blocks = nn.Sequential(*(nn.Sequential(*layers) for layers in blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(720, 1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(self.pool(self.blocks(x)).flatten(1)))
        return logits


CIFAR = Training(
    data="CIFAR-10 or CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=5e-4),
    schedule=Schedule(kind="cosine"),
    batch=128,
    epochs=200,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)
# The paper says "cyclic" and points to ESPNetv2, whose cycles of 5 epochs end at the rate that is given.
IMAGENET = Training(
    data="ImageNet",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-5),
    schedule=Schedule(kind="cyclic", cycle=5, milestones=(60, 90, 110, 125, 135, 145), gamma=0.5),
    batch=450,
    epochs=150,
    augmentation=("random resized crop 224", "flip", "normalise"),
)

_RESNET = Entry(
    name="hne/resnet50-cifar",
    about="ResNet-50 for 32x32",
    source="Ruiz and Verbeek 2020, Table 2",
    backbone=ResNet50,
    shape=(3, 32, 32),
    num_classes=10,
    scheme="hierarchical-ensemble{cuts=blocks.0,blocks.1,blocks.2,blocks.3}",
    loss=partial(HierarchicalCoDistillation, reduction="sum"),
    training=CIFAR,
)

ENTRIES = (
    _RESNET,
    replace(
        _RESNET,
        name="hne/resnet50-cifar-small",
        about="ResNet-50 for 32x32, half the channels",
        backbone=partial(ResNet50, width=0.5),
    ),
    # Figure 5, beside the tree: sixteen branches that share blocks 0 to 2, and sixteen networks that share nothing but
    # the input. All three learn by hierarchical distillation and are evaluated with 1, 2, 4, 8 and 16 leaves.
    replace(
        _RESNET,
        name="hne/resnet50-cifar-multibranch",
        source="Ruiz and Verbeek 2020, Figure 5",
        scheme="hierarchical-ensemble{splits=((blocks.2,16),) sizes=powers}",
    ),
    replace(
        _RESNET,
        name="hne/resnet50-cifar-independent",
        source="Ruiz and Verbeek 2020, Figure 5",
        scheme="hierarchical-ensemble{splits=((x,16),) sizes=powers}",
    ),
    Entry(
        name="hne/mobilenetv2-imagenet",
        about="MobileNetV2, about x0.75",
        source="Ruiz and Verbeek 2020, Table 3",
        backbone=MobileNetV2,
        shape=(3, 224, 224),
        num_classes=1000,
        scheme="hierarchical-ensemble{cuts=blocks.0,blocks.1,blocks.2}",
        loss=partial(HierarchicalCoDistillation, alpha=0.75, reduction="sum"),
        training=IMAGENET,
    ),
)
