"""Norms by unit: hand-made weights whose norms are known, groups, masks, and members of ensembles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import ArgumentError, HierarchicalEnsemble, NestedChannels, NestedDepth, SchemeError, transform
from anytimeify.diagnostics import UnitNorms, WeightNorms, weight_norms
from anytimeify.papers.networks import CifarResNet


class Branches(nn.Module):
    """A block of four branches, two channels wide, around which a stream of six channels goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.into = nn.Conv2d(6, 8, 1, bias=False)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.out = nn.Conv2d(8, 6, 1, bias=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.out(self.middle(self.into(x).relu()).relu())
        result: Tensor = self.fc(x.relu().mean((2, 3)))
        return result


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 4)


def of(found: WeightNorms, layer: str, dim: int) -> UnitNorms:
    (row,) = [row for row in found.rows if (row.layer, row.dim) == (layer, dim)]
    return row


@pytest.mark.parametrize("order", [1, 2])
def test_norms_by_branch(x: Tensor, order: int) -> None:
    backbone = Branches()
    net = transform(backbone, NestedChannels((0.25, 0.5, 1.0), where="inner"), x)
    found = weight_norms(net, order=order)
    assert [(row.layer, row.dim, len(row.norms)) for row in found.rows] == [
        ("into", 0, 4),
        ("middle", 0, 4),
        ("out", 1, 4),
    ]

    def by_hand(weight: Tensor, dim: int) -> Tensor:
        rows: Tensor = weight.detach().movedim(dim, 0).unflatten(0, (4, 2))
        norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), order, dim=1)
        return norms

    torch.testing.assert_close(of(found, "into", 0).norms, by_hand(backbone.into.weight, 0))
    torch.testing.assert_close(of(found, "middle", 0).norms, by_hand(backbone.middle.weight, 0))
    torch.testing.assert_close(of(found, "out", 1).norms, by_hand(backbone.out.weight, 1))
    assert of(found, "out", 1).kept == (1, 2, 4)
    relative = torch.stack([row.norms / row.norms.mean() for row in found.rows])
    torch.testing.assert_close(found.average, relative.mean(0))
    row = of(found, "into", 0)
    torch.testing.assert_close(
        torch.tensor(row.by_level), torch.stack([row.relative[0], row.relative[1], row.relative[2:].mean()])
    )


def test_where_is_the_schemes_own_unless_given(x: Tensor) -> None:
    net = transform(Branches(), NestedChannels((0.5, 1.0), where="inner"), x, verify=False)
    assert {row.group for row in weight_norms(net).rows} == {"into"}
    assert {row.group for row in weight_norms(net, "all").rows} == {"into", "stem"}
    assert {row.layer for row in weight_norms(net, ("stem",)).rows} == {"stem", "into", "out", "fc"}
    with pytest.raises(SchemeError, match="names no axis group"):
        weight_norms(net, "nothing")


def test_rows_of_different_lengths_are_averaged_by_place(x: Tensor) -> None:
    backbone = Branches()
    with torch.no_grad():
        for layer in (backbone.stem, backbone.into, backbone.middle, backbone.out, backbone.fc):
            layer.weight.fill_(1.0)
            layer.weight[: len(layer.weight) // 2] = 3.0
    found = weight_norms(transform(backbone, NestedChannels((0.5, 1.0)), x, verify=False))
    assert len(found.average) == 4
    torch.testing.assert_close(of(found, "into", 0).relative, torch.tensor([1.5, 1.5, 0.5, 0.5]))
    torch.testing.assert_close(of(found, "into", 1).relative, torch.ones(6))
    assert of(found, "into", 0).by_level == (1.5, 0.5)


def test_what_a_mask_leaves_out_does_not_count() -> None:
    scheme = NestedChannels((0.5, 1.0), connectivity="triangular")
    net = transform(CifarResNet(5, depth=8), scheme, torch.randn(2, 3, 8, 8), verify=False)
    with torch.no_grad():
        net.get_parameter("layer1.0.conv1.weight").fill_(1.0)
    row = of(weight_norms(net), "layer1.0.conv1", 0)
    assert row.norms.tolist() == row.weights.tolist() == [8.0 * 9] * 8 + [16.0 * 9] * 8
    assert of(weight_norms(net, per_weight=True), "layer1.0.conv1", 0).norms.tolist() == [1.0] * 16


def test_members_of_an_ensemble() -> None:
    net = transform(
        CifarResNet(5, depth=8), HierarchicalEnsemble(cuts=("layer1", "layer2")), torch.randn(2, 3, 8, 8), verify=False
    )
    with torch.no_grad():
        net.get_parameter("layer3.0.conv1.weight")[64:].mul_(2)
    found = weight_norms(net)
    row = of(found, "layer3.0.conv1", 0)
    assert (len(row.norms), row.kept, of(found, "layer2.0.conv1", 0).kept) == (4, (1, 2, 4), (1, 1, 2))
    assert of(found, "layer2.0.conv1", 0).by_level[1] is None
    weight = net.get_parameter("layer3.0.conv1.weight").detach().reshape(4, -1)
    torch.testing.assert_close(row.norms, weight.abs().sum(1))


def test_schemes_that_narrow_nothing_have_one_column() -> None:
    net = transform(CifarResNet(5, depth=14), NestedDepth(), torch.randn(2, 3, 8, 8), verify=False)
    whole, rest = of(weight_norms(net), "layer3.1.conv2", 1).by_level
    assert whole == pytest.approx(1.0)
    assert rest is None


@pytest.mark.parametrize("order", [0, 3, True, "1"])
def test_orders_that_there_are_none_of(x: Tensor, order: Any) -> None:
    net = transform(Branches(), NestedChannels((0.5, 1.0)), x, verify=False)
    with pytest.raises(ArgumentError, match="expected 1 or 2"):
        weight_norms(net, order=order)


def test_shown(x: Tensor, tmp_path: Path) -> None:
    found = weight_norms(transform(Branches(), NestedChannels((0.5, 1.0)), x, verify=False))
    text = str(found)
    assert text.startswith("l1 norm of the units that levels add, as a multiple of the mean over units")
    assert re.search(r"middle +0 +into +4 +\d\.\d{3} +\d\.\d{3}", text)
    read = json.loads(found.to_json())
    assert (read["norm"], read["levels"]) == ("l1 norm", ["width 0.5", "width 1"])
    assert len(read["average"]) == 4
    found.plot(tmp_path / "norms.svg")
    assert "place among the units" in (tmp_path / "norms.svg").read_text()
    inner = weight_norms(transform(Branches(), NestedChannels((0.5, 1.0), where="inner"), x, verify=False))
    inner.plot(tmp_path / "inner.png")
