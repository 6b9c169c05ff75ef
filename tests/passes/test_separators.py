"""Networks that no single tensor cuts: several together do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anytimeify import AuxiliaryBranches, HierarchicalEnsemble, transform
from anytimeify.capture import capture
from anytimeify.losses import JointLoss
from anytimeify.passes.rewrites.separators import separators
from anytimeify.testing import assert_levels_equal_extracts, check


class Towers(nn.Module):
    """Two towers side by side, which never meet before the sum of their scores."""

    def __init__(self, depth: int = 4, towers: int = 2) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(depth)) for _ in range(towers)
        )
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(towers))

    def forward(self, x: Tensor) -> Tensor:
        ways = [x for _ in self.towers]
        for layers in zip(*self.towers, strict=True):
            ways = [layer(way) for layer, way in zip(layers, ways, strict=True)]
        result: Tensor = torch.stack([head(way) for head, way in zip(self.heads, ways, strict=True)]).sum(0)
        return result


X = torch.randn(2, 6)


def test_a_cut_has_a_tensor_of_each_tower() -> None:
    cuts = separators(capture(Towers(), X), 2)
    assert cuts is not None
    assert [len(cut) for cut in cuts] == [2, 2]
    for cut in cuts:
        assert {node.meta["origin"].module_path.split(".")[1] for node in cut} == {"0", "1"}


def test_too_many_towers_are_no_cut() -> None:
    assert separators(capture(Towers(towers=6), X), 1) is None


def test_schemes_cut_there_where_no_single_tensor_will_do() -> None:
    backbone = Towers().eval()
    ensemble = transform(backbone, HierarchicalEnsemble(depth=2), (X,)).eval()
    check(ensemble, backbone, (X,))
    assert len(ensemble.levels) == 3
    branches = transform(backbone, AuxiliaryBranches(1), (X,), loss=JointLoss()).eval()
    assert_levels_equal_extracts(branches, (X,))
    assert 0 < branches.levels[0].cost.macs < branches.levels[1].cost.macs
