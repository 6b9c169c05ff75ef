"""A caller's inference mode must not make tensors that can never be trained."""

import torch
from torch import nn

from anytimeify import NestedChannels, Outputs, transform


def test_a_net_that_is_made_in_inference_mode_trains() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with torch.inference_mode():
        net = transform(backbone, NestedChannels((0.5, 1.0)), (torch.randn(2, 4),))
    outputs: Outputs = net(torch.randn(2, 4))
    torch.stack([level.square().sum() for level in outputs.levels]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
