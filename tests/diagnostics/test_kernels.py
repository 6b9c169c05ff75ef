"""Correlation of kernels: hand-made weights whose correlations are known, and every kind of level there is."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import (
    AnytimeModel,
    ArgumentError,
    ArtifactError,
    AuxiliaryBranches,
    Branch,
    HierarchicalEnsemble,
    MissingExtraError,
    MutualDistillation,
    NestedChannels,
    transform,
)
from anytimeify.diagnostics import KernelCorrelation, LayerCorrelation, kernel_correlation
from anytimeify.papers.networks import CifarResNet
from tests.source_files import ROOT

PERMUTATION = torch.tensor([3, 1, 0, 5, 4, 7, 2, 6])


class Net(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self, outputs: int = 8, kernel: int = 3, middle: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, middle, 3, padding=1)
        self.conv = nn.Conv2d(middle, outputs, kernel, padding=kernel // 2)
        self.fc = nn.Linear(outputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.conv(self.stem(x).relu()).relu().mean((2, 3)))
        return result


def pair(one: nn.Module, other: nn.Module, x: Tensor | None = None) -> AnytimeModel:
    """Two networks in one model, each a level."""
    return transform((one, other), MutualDistillation(0), torch.randn(2, 3, 6, 6) if x is None else x, verify=False)


def of(one: nn.Module, other: nn.Module, x: Tensor | None = None, **options: Any) -> KernelCorrelation:
    """The correlation of the first network with the second."""
    net = pair(one, other, x)
    index = {level.name: level.index for level in net.levels}
    return kernel_correlation(net, index["first/full"], index["second/full"], **options)


def by_hand(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of rows with rows."""
    rows = torch.cat((one.flatten(1), other.flatten(1))).detach()
    return torch.corrcoef(rows)[: len(one), len(one) :]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def resnet(x: Tensor, *branches: Branch) -> AnytimeModel:
    return transform(CifarResNet(5, depth=8), AuxiliaryBranches(branches), x, verify=False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8)


# Numbers.


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("order", [torch.arange(8), PERMUTATION])
def test_copies(order: Tensor, sign: int) -> None:
    """In whatever order, of whatever sign, scaled and shifted."""
    one, other = Net(), Net()
    with torch.no_grad():
        other.conv.weight.copy_(sign * 3 * one.conv.weight[order] + 0.5)
    layer = of(one, other)["conv"]
    close(layer.matrix[order, torch.arange(8)], torch.full((8,), float(sign)))
    assert torch.equal(layer.matrix.abs().argmax(0), order)
    assert (layer.best, layer.likeness, layer.mutual) == pytest.approx((1.0, 1.0, 1.0))
    assert layer.mean < 0.3


def test_independent_kernels() -> None:
    layer = of(Net(64, middle=32), Net(64, middle=32))["conv"]
    assert layer.matrix.shape == (64, 64)
    assert (layer.weights, layer.averaged) == (288, False)
    assert layer.mean == pytest.approx(math.sqrt(2 / (math.pi * 288)), rel=0.05)
    assert layer.likeness == pytest.approx(0, abs=0.02)
    assert layer.mutual == pytest.approx(0.5, abs=0.2)
    assert float(layer.matrix.mean()) == pytest.approx(0, abs=0.005)


def test_half_of_the_kernels_are_copies() -> None:
    one, other = Net(64, middle=32), Net(64, middle=32)
    with torch.no_grad():
        other.conv.weight[::2] = one.conv.weight[::2]
    assert of(one, other)["conv"].likeness == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("weights", "others"), [(3, 5), (9, 16), (72, 8), (576, 64)])
def test_by_chance(weights: int, others: int) -> None:
    drawn = torch.randn(40, 20, weights), torch.randn(40, others, weights)
    largest = [by_hand(one, other).abs().amax(1).mean() for one, other in zip(*drawn, strict=True)]
    layer = LayerCorrelation("conv", torch.rand(2, others), weights, averaged=False)
    assert layer.by_chance == pytest.approx(float(torch.stack(largest).mean()), rel=0.04)


def test_against_a_second_calculation() -> None:
    one, other = Net(8), Net(6)
    found = of(one, other)
    assert [layer.name for layer in found.layers] == ["stem", "conv"]
    for name in ("stem", "conv"):
        close(found[name].matrix, by_hand(one.get_parameter(f"{name}.weight"), other.get_parameter(f"{name}.weight")))
    with pytest.raises(KeyError):
        found["fc"]


def test_kernels_of_other_widths_are_averaged() -> None:
    one, other = Net(8, middle=4), Net(8, middle=7)
    layer = of(one, other, layer="conv").layers[0]
    assert (layer.weights, layer.averaged) == (9, True)
    close(layer.matrix, by_hand(one.conv.weight.mean(1), other.conv.weight.mean(1)))


def test_averages_do_not_depend_on_the_order_of_input_channels() -> None:
    one, other = Net(), Net()
    with torch.no_grad():
        other.conv.weight.copy_(one.conv.weight[:, [2, 0, 3, 1]])
    assert of(one, other)["conv"].best < 0.9
    layer = of(one, other, average=True)["conv"]
    assert layer.averaged
    close(layer.matrix.diagonal(), torch.ones(8))


def test_what_cannot_be_compared_says_why() -> None:
    found = of(Net(kernel=3), Net(kernel=5))
    assert dict(found.left_out) == {"conv": "with kernels of other sizes"}
    found = of(Net(kernel=1, middle=4), Net(kernel=1, middle=5))
    assert dict(found.left_out) == {"conv": "with kernels of fewer than 3 numbers"}
    constant = Net()
    nn.init.ones_(constant.conv.weight)
    found = of(constant, Net())
    assert dict(found.left_out) == {"conv": "with constant kernels"}


def test_constant_kernels_are_left_out_of_the_summary() -> None:
    one, other = Net(), Net()
    with torch.no_grad():
        other.conv.weight.copy_(one.conv.weight)
        one.conv.weight[2] = 0.1
        other.conv.weight[5] = 0
    layer = of(one, other)["conv"]
    assert torch.equal(layer.matrix.isnan().nonzero()[:, 0].unique(), torch.arange(8))
    assert layer.matrix[2].isnan().all()
    assert layer.matrix[:, 5].isnan().all()
    assert int(layer.matrix.isnan().sum()) == 15
    assert 0.8 < layer.best < 1  # 6 of 7 have their copy


# Kinds of convolutions.


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = F.layer_norm(self.weight, self.weight.shape[1:])
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Kinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.standardised = Standardised(6, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.line = nn.Conv1d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.standardised(self.grouped(x)).relu())
        result: Tensor = self.line(x.mean(3)).mean(2)
        return result


def test_every_kind_of_convolution() -> None:
    one, other = Kinds(), Kinds()
    found = of(one, other, torch.randn(2, 4, 6, 6))
    assert [layer.name for layer in found.layers] == ["grouped", "standardised", "up", "line"]
    assert not found.left_out
    close(found["grouped"].matrix, by_hand(one.grouped.weight, other.grouped.weight))
    close(found["standardised"].matrix, by_hand(one.standardised.weight, other.standardised.weight))
    close(found["line"].matrix, by_hand(one.line.weight, other.line.weight))

    def kernels(net: Kinds) -> Tensor:
        """Output channel 3 * g + o of group g reads its inputs by weight[2 * g : 2 * g + 2, o]."""
        weight = net.up.weight
        return torch.stack([weight[2 * group : 2 * group + 2, out] for group in range(2) for out in range(3)])

    close(found["up"].matrix, by_hand(kernels(one), kernels(other)))


# Kinds of levels.


def test_branches(x: Tensor) -> None:
    net = resnet(x, Branch("layer1"), Branch("layer2", widths={"layer3": 2.0}))
    own = ["layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"]
    with torch.no_grad():  # a branch of the backbone's own kernels, the other way round
        for name in own:
            net.get_parameter(f"anytime.0.{name}.weight").copy_(net.get_parameter(f"{name}.weight").flip(0))
    found = kernel_correlation(net, net.levels[0], -1)
    assert [layer.name for layer in found.layers] == own
    assert dict(found.left_out) == dict.fromkeys(("conv1", "layer1.0.conv1", "layer1.0.conv2"), "shared by both")
    for layer in found.layers:
        close(layer.matrix.flip(0).diagonal(), torch.ones(len(layer.matrix)))
        assert layer.likeness == pytest.approx(1)
    wide = kernel_correlation(net, 1, 2, layer="layer3")
    assert [(layer.name, *layer.matrix.shape, layer.averaged) for layer in wide.layers] == [
        ("layer3.0.conv1", 128, 64, False),
        ("layer3.0.conv2", 128, 64, True),
    ]
    assert not wide.left_out
    close(kernel_correlation(net, 2, 1)["layer3.0.conv2"].matrix, wide["layer3.0.conv2"].matrix.T)


def test_leaves_of_an_ensemble(x: Tensor) -> None:
    net = transform(CifarResNet(5, depth=8), HierarchicalEnsemble(cuts=("conv1", "layer2")), x, verify=False)
    weights = {name: net.get_parameter(f"{name}.weight") for name in ("layer2.0.conv1", "layer3.0.conv1")}
    found = kernel_correlation(net, 0, 3)
    close(found["layer2.0.conv1"].matrix, by_hand(*weights["layer2.0.conv1"].chunk(2)))
    four = weights["layer3.0.conv1"].chunk(4)
    close(found["layer3.0.conv1"].matrix, by_hand(four[0], four[3]))
    assert dict(found.left_out) == {"conv1": "shared by both"}
    near = kernel_correlation(net, 2, 3)
    assert [layer.name for layer in near.layers] == ["layer3.0.conv1", "layer3.0.conv2"]
    close(near["layer3.0.conv1"].matrix, by_hand(four[2], four[3]))
    with pytest.raises(ArgumentError, match=r"'2 leaves' is several networks: give the number of a leaf"):
        kernel_correlation(net, 0, net.levels[1])
    with pytest.raises(ArgumentError, match="there is no leaf 4: they are 0 to 3"):
        kernel_correlation(net, 0, 4)


def test_leaves_that_start_as_copies(x: Tensor) -> None:
    net = transform(CifarResNet(5, depth=8), HierarchicalEnsemble(1, init="copy"), x, verify=False)
    for layer in kernel_correlation(net, 0, 1).layers:
        close(layer.matrix.diagonal(), torch.ones(len(layer.matrix)))


def test_branches_of_two_networks(x: Tensor) -> None:
    """Compared within a network and across, under the names that layers have in their own network."""
    backbones = CifarResNet(5, depth=8), CifarResNet(5, depth=8)
    net = transform(backbones, MutualDistillation((Branch("layer2"),)), x, verify=False)
    index = {level.name: level.index for level in net.levels}
    inside = kernel_correlation(net, index["first/branch at layer2"], index["first/full"])
    assert [layer.name for layer in inside.layers] == ["layer3.0.conv1", "layer3.0.conv2"]
    across = kernel_correlation(net, index["first/branch at layer2"], index["second/full"])
    assert len(across.layers) == 7
    assert not across.left_out


def test_level_without_layers_of_its_own(x: Tensor) -> None:
    net = resnet(x, Branch("layer1", head="pool"))
    message = r"'branch at layer1' and 'full' have no convolutions to compare: 3 layers shared by both; choose"
    with pytest.raises(ArgumentError, match=message):
        kernel_correlation(net, 0, 1)
    nested = transform(Net(), NestedChannels((0.5, 1.0)), x, verify=False)
    with pytest.raises(ArgumentError, match=r"no convolutions to compare: 2 layers shared by both"):
        kernel_correlation(nested, 0, 1)
    with pytest.raises(ArgumentError, match=r"no convolutions to compare in 'stem': 1 layer shared by both"):
        kernel_correlation(nested, 0, 1, "stem")
    with pytest.raises(ArgumentError, match=r"shared by both"):
        kernel_correlation(nested, 1, -1)


@pytest.mark.parametrize("level", [2, -3, True, "full", 0.0])
def test_levels_that_there_are_none_of(x: Tensor, level: Any) -> None:
    with pytest.raises(ArgumentError, match=r"there is no level .*: they are 0 to 1"):
        kernel_correlation(pair(Net(), Net()), level, 0)


def test_layers_that_there_are_none_of() -> None:
    with pytest.raises(
        ArgumentError, match=r"layer='con': no convolution of that name is in both; one that is: 'conv'"
    ):
        of(Net(), Net(), layer="con")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    with pytest.raises(ArgumentError, match=r"layer='0': .*there are none at all"):
        of(Net(), plain, layer="0")
    with pytest.raises(ArgumentError, match="there are none of the same name"):
        of(Net(), plain)


# Shown.


def test_shown_as_text_markdown_and_json(x: Tensor) -> None:
    found = kernel_correlation(resnet(x, Branch("layer2")), 0, 1)
    text = str(found)
    assert text.startswith("Correlation of the kernels of 'branch at layer2' with those of 'full'\n")
    assert re.search(r"layer3\.0\.conv1 +64 x 64 +288 ", text)
    assert re.search(r"5 +shared by both", text)
    assert "| layer2.0.conv1 | shared by both |" in found.to_markdown()
    read = json.loads(found.to_json())
    assert (read["one"], read["other"], len(read["left_out"])) == ("'branch at layer2'", "'full'", 5)
    layer = found.layers[0]
    summary = {name: getattr(layer, name) for name in ("mean", "best", "by_chance", "likeness", "mutual")}
    sizes = {"name": "layer3.0.conv1", "kernels": [64, 64], "weights": 288, "averaged": False}
    assert read["layers"][0] == sizes | summary


def test_plots(tmp_path: Path, x: Tensor) -> None:
    found = kernel_correlation(resnet(x, Branch("layer1")), 0, 1)
    found.plot(tmp_path / "all.png")
    found.plot(tmp_path / "one.svg", "layer2.0.conv1")
    found.plot(tmp_path / "some.png", "layer3")
    sizes = [(tmp_path / name).stat().st_size for name in ("all.png", "some.png")]
    assert sizes[0] > sizes[1] > 1000
    drawn = (tmp_path / "one.svg").read_text()
    assert "layer2.0.conv1" in drawn
    assert "layer2.0.conv2" not in drawn
    with pytest.raises(ArgumentError, match="layer='layer1'"):
        found.plot(tmp_path / "no.png", "layer1")
    with pytest.raises(ArtifactError, match="its suffix chooses the format"):
        found.plot(tmp_path / "no.txt")
    with pytest.raises(ArtifactError, match="There is no folder"):
        found.plot(tmp_path / "nowhere" / "no.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ArtifactError, match=r"folder\.png. is a folder"):
        found.plot(tmp_path / "folder.png")
    assert not list(tmp_path.glob("no*"))


def test_plotting_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anytimeify\[plot\]'"):
        of(Net(), Net()).plot(tmp_path / "kernels.png")


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "diagnostics.md").read_text(), re.DOTALL)
    assert "range(10)" in text
    monkeypatch.chdir(tmp_path)
    exec(text.replace("range(10)", "range(0)"), {})
    assert (tmp_path / "kernels.png").is_file()
    likeness = re.findall(r"^layer\S+ +\d+ x \d+ .* (\S+) +100 %$", capsys.readouterr().out, re.MULTILINE)
    assert likeness == ["1.000"] * 4  # not trained yet: the branch is a copy
