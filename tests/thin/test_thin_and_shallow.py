"""Levels of depth and width together, against networks that timm's own constructors build thin and shallow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from anytimeify import NestedChannels, NestedDepth, transform
from anytimeify.testing import randomise
from tests.rules.thin_copy import copy_blocks


def resnet(repeats: int, share: int) -> nn.Module:
    channels = tuple(size // share for size in (16, 24, 32, 40))
    block: Any = BasicBlock
    return ResNet(block, (repeats,) * 4, 10, stem_type="deep", stem_width=8 // share, channels=channels)


def vit(depth: int, share: int) -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=8, num_classes=10, embed_dim=32 // share, depth=depth, num_heads=4 // share
    )


def parts_of_vit(name: str, dim: int) -> int:
    return 3 if ".qkv." in name and dim == 0 else 1


@pytest.mark.parametrize(
    ("full", "thin", "parts"),
    [(resnet(4, 1), resnet(2, 2), lambda name, dim: 1), (vit(4, 1), vit(2, 2), parts_of_vit)],
    ids=["resnet", "vit"],
)
def test_a_level_is_the_network_built_thin_and_shallow(full: nn.Module, thin: nn.Module, parts: Any) -> None:
    """The small network is built by the library's own constructor, and the prefix of every weight is copied by hand."""
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    randomise(full.eval())
    net = transform(full, (NestedDepth(), NestedChannels((0.5, 1.0))), (x,)).eval()
    by_hand = copy_blocks(full, thin.eval(), parts)
    torch.testing.assert_close(net(x).levels[0], by_hand(x))
    small = net.extract(0)
    assert small.state_dict().keys() <= by_hand.state_dict().keys()
    by_hand.load_state_dict({**by_hand.state_dict(), **small.state_dict()})
    torch.testing.assert_close(small(x), by_hand(x))
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in by_hand.parameters())
