"""Hierarchical ensembles of small backbones, and the comparison of fused replicas with unrolled ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, Outputs, transform

SIDE = 8


class Chain(nn.Module):
    """Three stages of convolutions with a residual addition each, depthwise ones among them, and a classifier."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1, self.stage2, self.stage3 = (Stage(width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.point = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.scale * self.point(self.norm(self.deep(x)).relu()))


CUTS = ("stem", "stage1", "stage2")


def net_of(backbone: nn.Module | None = None, **options: Any) -> AnytimeModel:
    torch.manual_seed(0)
    scheme = HierarchicalEnsemble(**{"cuts": CUTS, **options})
    return transform(backbone or Chain(), scheme, images()).eval()


def images(batch: int = 2) -> tuple[Tensor]:
    return (torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)),)


def members(net: AnytimeModel, x: Tensor) -> Tensor:
    outputs: Outputs = net(x)
    return torch.stack(outputs.members)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *layers, nn.Linear(6, 3))


def part(net: AnytimeModel, name: str, member: int, count: int) -> Tensor:
    return net.get_parameter(name).detach().chunk(count)[member]


def differences(backbone: nn.Module, inputs: tuple[Tensor, ...], scheme: HierarchicalEnsemble) -> None:
    """Outputs and gradients of the fused net against those of the unrolled one with the same parameters."""
    fused = transform(backbone, scheme, inputs).double()
    apart = transform(backbone, HierarchicalEnsemble(depth=scheme.depth, cuts=scheme.cuts, fuse=False), inputs).double()
    apart.load_state_dict(fused.state_dict())
    gradients = []
    for net in (fused.eval(), apart.eval()):
        outputs: Outputs = net(*(x.double() for x in inputs))
        weights = torch.Generator().manual_seed(0)
        results = (*outputs.levels, *outputs.members)
        torch.stack([(y * torch.randn(y.shape, generator=weights)).sum() for y in results]).sum().backward()
        gradients.append((results, {name: parameter.grad for name, parameter in net.named_parameters()}))
    (one, mine), (other, theirs) = gradients
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-7, atol=1e-9, msg=name)
