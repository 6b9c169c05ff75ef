"""Reference networks whose own constructors can build them at half width, and the copying of weight prefixes.

A thin network's tensors are the leading slices of the full ones. Where a dimension is composed (concatenations, fused
projections) the exception is written out here by hand, from the architecture and not from the compiler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, ShuffleNetV2

__all__ = ["NETWORKS", "Network", "copy_prefix"]

CLASSES = 10

Positions = Callable[[str, int, int, int], list[int] | None]
"""(tensor name, dimension, full size, thin size) to the kept positions; None for the leading ones."""


def leading(name: str, dim: int, full: int, thin: int) -> None:
    return None


@dataclass(frozen=True)
class Network:
    """`build(1)` is the full network, `build(2)` the same constructor at half width."""

    name: str
    build: Callable[[int], nn.Module]
    side: int = 32
    positions: Positions = leading

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(2, 3, self.side, self.side, generator=torch.Generator().manual_seed(11)),)

    def __str__(self) -> str:
        return self.name


def copy_prefix(full: nn.Module, thin: nn.Module, positions: Positions) -> None:
    """Give `thin` the kept part of every parameter and buffer of `full`."""
    source, result = full.state_dict(), {}
    for name, target in thin.state_dict().items():
        value = source[name]
        for dim, size in enumerate(target.shape):
            kept = positions(name, dim, value.shape[dim], size)
            value = value.narrow(dim, 0, size) if kept is None else value.index_select(dim, torch.tensor(kept))
        result[name] = value
    thin.load_state_dict(result)


def _resnet(block: Any, **sizes: Any) -> nn.Module:
    """A deep stem, whose width can be chosen."""
    return ResNet(block, (2, 1, 1, 1), CLASSES, stem_type="deep", **sizes)


def resnet_basic(share: int) -> nn.Module:
    channels = (16 // share, 24 // share, 32 // share, 40 // share)
    return _resnet(BasicBlock, stem_width=8 // share, channels=channels)


def resnet_bottleneck(share: int) -> nn.Module:
    channels = (8 // share, 12 // share, 16 // share, 24 // share)
    return _resnet(Bottleneck, stem_width=8 // share, channels=channels)


def resnext(share: int) -> nn.Module:
    """Half the groups of unchanged width: the constructor multiplies the channels, the base width and the groups."""
    return _resnet(
        Bottleneck,
        cardinality=8 // share,
        base_width=4 * share,
        stem_width=8 // share,
        channels=(64 // share, 64 // share, 128 // share, 128 // share),
    )


def vit(share: int) -> nn.Module:
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        num_classes=CLASSES,
        embed_dim=48 // share,
        depth=2,
        num_heads=4 // share,
        init_values=1.0,
    )


def vit_positions(name: str, dim: int, full: int, thin: int) -> list[int] | None:
    """A fused projection is (3, heads, head size): whole heads of each of q, k and v."""
    if ".qkv." not in name or dim != 0:
        return None
    return [part * (full // 3) + position for part in range(3) for position in range(thin // 3)]


def convnext(share: int) -> nn.Module:
    dims = (16 // share, 24 // share, 32 // share, 40 // share)
    model: nn.Module = ConvNeXt(num_classes=CLASSES, depths=(1, 1, 2, 1), dims=dims, ls_init_value=1.0)
    return model


GROWTH, FIRST, LAYERS = 8, 16, (2, 3)


def densenet(share: int) -> nn.Module:
    model: nn.Module = DenseNet(GROWTH // share, LAYERS, FIRST // share, bn_size=2, num_classes=CLASSES)
    return model


def densenet_positions(name: str, dim: int, full: int, thin: int) -> list[int] | None:
    """What reads a concatenation (the first norm and convolution of a layer, a transition, the last norm, the
    classifier) keeps half of each part: the block's input, then one part per layer before."""
    layer = re.search(r"denseblock(\d)\.denselayer(\d)\.(norm1|conv1)\.(\w+)", name)
    after = re.search(r"transition(\d)\.(norm|conv)\.(\w+)|(norm5|classifier)\.(\w+)", name)
    if layer:
        block, earlier, kind = int(layer[1]), int(layer[2]) - 1, layer[3]
    elif after:
        block = int(after[1]) if after[1] else len(LAYERS)
        earlier, kind = LAYERS[block - 1], after[2] or after[4]
    else:
        return None
    if full == thin or dim != (0 if kind.startswith("norm") else 1):
        return None
    entering = FIRST if block == 1 else (FIRST + LAYERS[0] * GROWTH) // 2
    parts = [entering] + [GROWTH] * earlier
    assert sum(parts) == full, f"{name}: {parts} are not {full}"
    starts = [sum(parts[:index]) for index in range(len(parts))]
    return [start + position for start, part in zip(starts, parts, strict=True) for position in range(part // 2)]


def mixer(share: int) -> nn.Module:
    return MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=32 // share)


def mobilenet(share: int) -> nn.Module:
    """The width multiplier halves everything from 2 to 1; below 1 it would leave the last layer as it is."""
    setting = [[1, 8, 1, 1], [6, 12, 2, 2], [6, 16, 1, 2]]
    model: nn.Module = MobileNetV2(CLASSES, width_mult=2.0 / share, inverted_residual_setting=setting, round_nearest=1)
    return model


def shufflenet(share: int) -> nn.Module:
    channels = [24 // share, 48 // share, 64 // share, 96 // share, 128 // share]
    model: nn.Module = ShuffleNetV2([3, 2, 1], channels, CLASSES)
    return model


NETWORKS = (
    Network("resnet-basic", resnet_basic),
    Network("resnet-bottleneck", resnet_bottleneck),
    Network("resnext", resnext),
    Network("vit", vit, positions=vit_positions),
    Network("convnext", convnext, side=64),
    Network("densenet", densenet, positions=densenet_positions),
    Network("mlp-mixer", mixer),
    Network("mobilenetv2", mobilenet),
    Network("shufflenetv2", shufflenet, side=64),
)
