"""A handful of architectures of every kind, from the benchmark's constructors; the benchmark runs them all."""

from __future__ import annotations

import warnings

import pytest

from anytimeify import NestedChannels, transform
from anytimeify.testing import assert_costs_increase
from benchmarks.zoo import TRANSFORMERS, build, catalogue

pytestmark = pytest.mark.zoo

BACKBONES = (
    *("timm:test_vit", "timm:test_byobnet", "timm:efficientvit_m0"),
    *("torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small", "torchvision:lraspp_mobilenet_v3_large"),
    *("hf:bert", "hf:modernbert", "hf:gpt2", "hf:llama", "hf:t5", "hf:bart", "hf:swin", "hf:segformer", "hf:wav2vec2"),
)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    model, inputs = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the zoos say of themselves when they run
        net = transform(model, NestedChannels(widths=(0.25, 0.5, 1.0)), inputs)
    assert_costs_increase(net)
    assert net.levels[0].cost.macs < net.levels[-1].cost.macs / 2


def test_the_constructors_reach_every_kind() -> None:
    assert len(TRANSFORMERS) >= 25
    assert len(catalogue("timm")) > 1000
    torchvision = catalogue("torchvision")
    assert {"resnet18", "r3d_18", "raft_small", "fcn_resnet50", "retinanet_resnet50_fpn"} <= set(torchvision)
    assert not [name for name in torchvision if name.startswith("quantized")]
