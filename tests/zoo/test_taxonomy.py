"""Heads for several granularities on published networks, whatever lies between their last layer and the prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify import HierarchicalEnsemble, NestedChannels, Taxonomy, transform

pytestmark = pytest.mark.zoo

CLASSES = 30
TAXONOMY = Taxonomy.from_parents([c % 7 for c in range(CLASSES)], [0, 0, 0, 1, 1, 1, 1])


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return build


def from_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES, **options)
        return model

    return build


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": from_timm("resnet18"),
    "densenet121": from_torchvision("densenet121"),
    "squeezenet1_1": from_torchvision("squeezenet1_1"),  # convolution, ReLU, average
    "mobilenetv3": from_timm("mobilenetv3_small_050"),
    "deit, distilled": from_timm("deit_tiny_distilled_patch16_224", img_size=64),  # the mean of two heads
    "convnext": from_timm("convnext_atto"),
    "swin": from_timm("swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=24, depths=(2, 2, 2, 2)),
    "lraspp": from_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),  # the sum of two maps, upsampled
    "mixer": from_timm("mixer_s32_224", img_size=64),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    "scheme",
    [NestedChannels((0.5, 1.0)), NestedChannels((0.5, 1.0), connectivity="triangular"), HierarchicalEnsemble(1)],
)
def test_every_level_predicts_every_granularity(name: str, scheme: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the networks' own code
        net = transform(BACKBONES[name](), scheme, images, taxonomy=TAXONOMY, consensus="learned")
        outputs = net.train()(images)
    *levels, (consensus,) = outputs.levels
    for level in levels:
        assert [one.shape[1] for one in level] == list(TAXONOMY.sizes)
    assert consensus.shape == levels[0][0].shape
    target = torch.zeros(2, *consensus.shape[2:], dtype=torch.int64)
    net.loss(outputs, target).backward()
    assert not [key for key, one in net.named_parameters() if one.requires_grad and one.grad is None]
