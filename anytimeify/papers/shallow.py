"""Shallow sub-networks: the multi-exit baseline that Lee and Shin 2018 hold their thin ones against (section 4.1).

A plain ResNeXt with a classifier behind every block but the first; a level is the network up to there. The exits read
average-pooled features directly. In the paper a norm and a ReLU come before the pooling, as they do before the last
classifier here, and the pooling leaves one position where these heads keep up to 4x4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks.initialisers import fan_out
from anytimeify.papers.recipe import Entry
from anytimeify.papers.training import Optimiser, Schedule, Training
from anytimeify.passes.auxiliary_branches import AuxiliaryBranches
from anytimeify.passes.branch import Branch

__all__ = ["ENTRIES", "ResNeXt", "exits"]

STAGES = 3


class Block(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, grouped 3x3, norm, ReLU, 1x1; plus the input.

    (N, inputs, H, W) -> (N, outputs, H/2, W/2) with twice the channels, or the same shape. What halves the size comes
    first, before both ways: 2x2 average pooling, and channels of zeros after those of the input.
    """

    def __init__(self, inputs: int, outputs: int, middle: int, groups: int) -> None:
        super().__init__()
        self.zeros = outputs - inputs
        self.pool = nn.AvgPool2d(2) if self.zeros else None
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(outputs, middle, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = F.pad(self.pool(x), (0, 0, 0, 0, 0, self.zeros))
        path = self.conv1(self.relu(self.bn1(x)))
        path = self.conv2(self.relu(self.bn2(path)))
        path = self.conv3(self.relu(self.bn3(path)))
        result: Tensor = x + path
        return result


class ResNeXt(nn.Module):
    """Pre-activation ResNeXt of `depth` layers for small images: (N, 3, 32, 32) -> (N, num_classes).

    `layer1`, `layer2` and `layer3` have the widths `width`, twice and four times that, at 32x32, 16x16 and 8x8. No norm
    follows the last convolution of a block, nor the stem.

    Parameters
        depth: 9n + 2, for n blocks in a stage.
        width: channels of the first stage.
        branches: groups of the 3x3 convolutions.
        branch_width: channels of one of them in the first stage; twice as many in each stage after it.
        initialise: draws the weights of a layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        depth: int = 29,
        width: int = 64,
        branches: int = 8,
        branch_width: int = 4,
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(depth - 2, 3 * STAGES)
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: these networks have {3 * STAGES}n + 2 layers")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        middle = branches * branch_width
        self.layer1 = _stage(width, width, middle, branches, repeats)
        self.layer2 = _stage(width, width * 2, middle * 2, branches, repeats)
        self.layer3 = _stage(width * 2, width * 4, middle * 4, branches, repeats)
        self.bn = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 4, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, middle: int, groups: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(*(Block(outputs if index else inputs, outputs, middle, groups) for index in range(repeats)))


def exits(depth: int = 29) -> tuple[Branch, ...]:
    """A pooled head behind every block of `ResNeXt(depth=depth)` but the first, and the last, which has its own."""
    repeats = (depth - 2) // (3 * STAGES)
    blocks = [f"layer{stage}.{block}" for stage in range(1, STAGES + 1) for block in range(repeats)]
    return tuple(Branch(at, head="pool") for at in blocks[1:-1])


# The paper has Nesterov's momentum, which the authors' commands leave out. 5,000 of the 50,000 training images are held
# out, to choose by.
CIFAR = Training(
    data="CIFAR-10 or CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(150, 225)),
    batch=64,
    epochs=300,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)

ENTRIES = (
    Entry(
        name="shallow/resnext-29",
        about="ResNeXt-29 of 8 branches",
        source="Lee and Shin 2018, section 4.1",
        backbone=partial(ResNeXt, depth=29),
        shape=(3, 32, 32),
        num_classes=10,
        scheme=AuxiliaryBranches(exits(29)),
        # Their Eq. 1: the cross-entropies of all sub-networks, without weights.
        loss=JointLoss,
        training=CIFAR,
    ),
)
