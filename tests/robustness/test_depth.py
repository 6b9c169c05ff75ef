"""Networks of a thousand layers: nothing recurses over a graph, nothing takes more time a node than in small ones."""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from anytimeify import transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from tests.robustness.helpers import SCHEME, close


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The residual networks for small images: 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        widths = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairwise(widths)))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.bn(self.stem(x)).relu()).mean((2, 3)))  # type: ignore[no-any-return]


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_1202_layers() -> None:
    model = ResNet(200)
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 1202 + 2  # two shortcuts
    limit = sys.getrecursionlimit()
    net = transform(model, SCHEME, IMAGES)
    assert sys.getrecursionlimit() == limit
    assert len(net.captured.program.graph.nodes) > 10_000
    outputs = net.train()(IMAGES)
    net.loss(outputs, torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.eval()
    small = net.extract(0)
    close(small(IMAGES), net(IMAGES, level=0))
    assert sum(parameter.numel() for parameter in small.parameters()) == net.levels[0].cost.params


@pytest.mark.slow
def test_the_analysis_takes_no_more_time_a_node_in_a_deep_network() -> None:
    """Five times the depth, ten times the time at most: a quadratic step would take twenty-five times."""
    image = IMAGES[:, :, :8, :8]
    shallow, deep = (capture(ResNet(blocks, 2), image, check=False).program for blocks in (2, 10))

    def seconds(program: object) -> float:
        start = time.process_time()
        analyse(program)  # type: ignore[arg-type]  # a program
        return time.process_time() - start

    assert min(seconds(deep) for _ in range(5)) < 10 * min(seconds(shallow) for _ in range(5))
