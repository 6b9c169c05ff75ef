"""Pre-activation ResNeXt, for small images and for those of ImageNet: Xie et al. 2017, as Lee and Shin 2018 have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.papers.networks.initialisers import fan_out

__all__ = ["ResNeXt"]


class Block(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, grouped 3x3, norm, ReLU, 1x1; plus the input.

    (N, inputs, H, W) -> (N, outputs, H, W). `groups`: of the 3x3 convolution; `chunks`: of the last 1x1 one, whose
    groups each write a part of the outputs. With `halve` 2x2 average pooling comes first, before both ways, and with
    `inputs < outputs` channels of zeros, after each of `chunks` equal parts of the input's.
    """

    def __init__(self, inputs: int, outputs: int, middle: int, groups: int, *, halve: bool, chunks: int = 1) -> None:
        super().__init__()
        self.zeros, self.chunks = outputs - inputs, chunks
        self.pool = nn.AvgPool2d(2) if halve else None
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(outputs, middle, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, groups=chunks, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = self.pool(x)
        if self.zeros:
            x = self._pad(x)
        path = self.conv1(self.relu(self.bn1(x)))
        path = self.conv2(self.relu(self.bn2(path)))
        path = self.conv3(self.relu(self.bn3(path)))
        result: Tensor = x + path
        return result

    def _pad(self, x: Tensor) -> Tensor:
        if self.chunks == 1:
            return F.pad(x, (0, 0, 0, 0, 0, self.zeros))
        parts = x.unflatten(1, (self.chunks, -1))
        return F.pad(parts, (0, 0, 0, 0, 0, self.zeros // self.chunks)).flatten(1, 2)


class ResNeXt(nn.Module):
    """Pre-activation ResNeXt of `depth` layers: (N, 3, H, W) -> (N, num_classes).

    `layer1`, `layer2`, ... have `width` times `multiples` channels, each at half the size of the one before. No norm
    follows the last convolution of a block, nor the stem.

    Parameters
        depth: 3 * len(multiples) * n + 2, for n blocks in a stage.
        width: channels of the first stage.
        branches: groups of the 3x3 convolutions.
        branch_width: channels of one of them in the first stage; `multiples` as many in the others.
        chunks: equal parts that the channels between blocks are written in. The last convolution of a block has as many
            groups, so a part is written by its own share of the branches, and zeros are added to each part. With 1 this
            is the usual network.
        multiples: widths of the stages.
        blocks: only so many blocks, the first ones; all by default.
        stem: `"small"`: a 3x3 convolution; `"imagenet"`: a 7x7 convolution and 3x3 max pooling, each of stride 2.
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
        chunks: int = 1,
        multiples: Sequence[int] = (1, 2, 4),
        blocks: int | None = None,
        stem: Literal["small", "imagenet"] = "small",
        initialise: Callable[[nn.Module], None] = fan_out,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(depth - 2, 3 * len(multiples))
        if rest or repeats < 1:
            raise ValueError(f"depth={depth}: these networks have {3 * len(multiples)}n + 2 layers")
        if width % chunks or branches % chunks:
            raise ValueError(f"chunks={chunks}: expected a divisor of width={width} and of branches={branches}")
        if stem == "small":
            self.conv1: nn.Module = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        else:
            raise ValueError(f"stem={stem!r}: expected 'small' or 'imagenet'")
        if blocks is not None and not 1 <= blocks <= repeats * len(multiples):
            raise ValueError(f"blocks={blocks}: expected 1 to {repeats * len(multiples)}, which depth={depth} has")
        left = repeats * len(multiples) if blocks is None else blocks
        self.stages: list[str] = []
        inputs = width
        for number, multiple in enumerate(multiples, 1):
            if left < 1:
                break
            outputs, middle = width * multiple, branches * branch_width * multiple
            stage = [
                Block(
                    inputs if index == 0 else outputs,
                    outputs,
                    middle,
                    branches,
                    halve=number > 1 and index == 0,
                    chunks=chunks,
                )
                for index in range(min(repeats, left))
            ]
            left -= repeats
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            self.stages.append(f"layer{number}")
            inputs = outputs
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        self._init_weights = initialise
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits
