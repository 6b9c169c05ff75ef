"""The installed package, as a user meets it. Also run alone against the built wheel, so it uses nothing of `tests`."""

from __future__ import annotations

import torch
from torch import nn

import anytimeify
import anytimeify.passes
from anytimeify import Budget, NestedChannels, transform


def backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def test_any_backbone_in_nested_levels_out() -> None:
    model, images = backbone().eval(), torch.randn(2, 3, 8, 8)
    net = transform(model, NestedChannels(widths=(0.5, 1.0)), example_inputs=(images,)).eval()

    outputs = net(images)

    assert [tuple(level.shape) for level in outputs.levels] == [(2, 5), (2, 5)]
    torch.testing.assert_close(outputs.levels[-1], model(images), rtol=1e-5, atol=1e-5)
    cheapest = net.select(Budget(macs=net.levels[0].cost.macs))
    assert cheapest == net.levels[0]
    torch.testing.assert_close(net.extract(cheapest)(images), outputs.levels[0], rtol=1e-5, atol=1e-5)


def test_everything_public_has_a_name_that_works() -> None:
    assert all(hasattr(anytimeify, name) for name in anytimeify.__all__)
    assert anytimeify.passes.__name__ == "anytimeify.passes"
