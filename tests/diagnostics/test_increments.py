"""What levels add to activations: by hand from the extracts, for every kind of level."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    ArgumentError,
    ArtifactError,
    AuxiliaryBranches,
    Branch,
    HierarchicalEnsemble,
    MutualDistillation,
    NestedChannels,
    NestedDepth,
    transform,
)
from anytimeify.diagnostics import ActivationIncrements, activation_increments
from anytimeify.papers.networks import CifarResNet
from anytimeify.testing import randomise
from tests.source_files import ROOT


class Both(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)


class Net(nn.Module):
    """Two convolutions, a concatenation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 4, 3, padding=1)
        self.both, self.join = Both(), nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.join(self.both(x, self.conv(x)))
        result: Tensor = self.fc(x.relu().mean((2, 3)))
        return result


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 8, 8)


def resnet(x: Tensor, scheme: Any, depth: int = 14) -> AnytimeModel:
    return transform(randomise(CifarResNet(5, depth=depth)), scheme, x, verify=False).eval()


def result_of(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module of a network returns."""
    found: list[Tensor] = []
    handle = module.get_submodule(name).register_forward_hook(lambda *given: found.append(given[2].detach()))
    module(x)
    handle.remove()
    return found[0]


def test_widths_by_hand(x: Tensor) -> None:
    net = transform(randomise(Net()), NestedChannels((0.25, 0.5, 1.0)), x)
    found = activation_increments(net, x, "stem")["stem"]
    features = [result_of(net.extract(level), "stem", x) for level in range(3)]
    whole = [torch.cat([one, one.new_zeros(3, 8 - one.shape[1], 8, 8)], 1) for one in features]
    torch.testing.assert_close(found.maps[0], features[0].abs().mean(1))
    for level in (1, 2):
        added = (whole[level] - whole[level - 1]).abs().sum(1) / features[level].shape[1]
        torch.testing.assert_close(found.maps[level], added)
    torch.testing.assert_close(found.size, torch.stack([one.abs().mean() for one in features]))
    torch.testing.assert_close(found.added, found.maps.mean((1, 2, 3)) / found.size)


def test_channels_of_a_concatenation_are_compared_with_themselves(x: Tensor) -> None:
    """Weights that do not mix channels: what two levels have in common does not change between them."""
    backbone = Net()
    nn.init.dirac_(backbone.conv.weight)
    net = transform(backbone, NestedChannels((0.5, 1.0)), x)
    features = result_of(backbone, "both", x)
    new = torch.tensor([4, 5, 6, 7, 10, 11])  # of eight channels and four more, those that only the full level has
    maps = activation_increments(net, x, "both")["both"].maps
    torch.testing.assert_close(maps[1], features[:, new].abs().sum(1) / 12)


@pytest.mark.parametrize("connectivity", ["dense", "triangular"])
def test_every_block_by_default(x: Tensor, connectivity: Any) -> None:
    net = resnet(x, NestedChannels((0.25, 0.5, 1.0), connectivity=connectivity))
    found = activation_increments(net, x)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert [layer.name for layer in found.layers if layer.name in blocks] == blocks
    assert dict(found.left_out) == {"fc": "has no positions"}
    assert found["layer2.1"].maps.shape == (3, 3, 4, 4)
    if connectivity == "triangular":  # nothing changes but what is new
        maps = activation_increments(net, x, "layer2.0.conv1")["layer2.0.conv1"].maps
        features = result_of(net.extract(-1, dense=True), "layer2.0.conv1", x)
        torch.testing.assert_close(maps[2], features[:, 16:].abs().sum(1) / 32)
        torch.testing.assert_close(maps[1], features[:, 8:16].abs().sum(1) / 16)


def test_skipped_blocks_hand_on_what_they_would_have_read(x: Tensor) -> None:
    net = resnet(x, NestedDepth())
    found = activation_increments(net, x)
    assert float(found["layer1.0"].maps[1].abs().max()) == 0
    torch.testing.assert_close(found["layer1.1"].maps[0], found["layer1.0"].maps[0])
    assert float(found["layer1.1"].maps[1].mean()) > 0
    pair = resnet(x, (NestedDepth((0.5, 0.5, 1.0)), NestedChannels((0.5, 1.0, 1.0))))
    both = activation_increments(pair, x)
    assert both.levels == ("depth 0.5, width 0.5", "depth 0.5, width 1", "depth 1, width 1")
    assert float(both["layer1.0"].maps[1].mean()) > 0
    assert float(both["layer1.0"].maps[2].abs().max()) == 0
    assert float(both["layer1.1"].maps[2].mean()) > 0


def test_ensembles_are_means_of_leaves(x: Tensor) -> None:
    net = resnet(x, HierarchicalEnsemble(cuts=("layer1", "layer2")), depth=8)
    found = activation_increments(net, x)
    assert found.levels == ("1 leaf", "2 leaves", "4 leaves")
    assert float(found["layer1.0"].maps[1:].abs().max()) == 0
    assert float(found["layer2.0"].maps[1].abs().max()) == 0  # the first two leaves share it
    assert float(found["layer2.0"].maps[2].mean()) > 0
    assert float(found["layer3.0"].maps[1].mean()) > 0


def test_branches_where_they_have_the_layer(x: Tensor) -> None:
    net = resnet(x, AuxiliaryBranches((Branch("layer1"), Branch("layer2", head="pool"))), depth=8)
    found = activation_increments(net, x)
    assert "layer1.0" in {layer.name for layer in found.layers}
    assert found.left_out["layer3.0"] == "is not computed by every level"


def test_tokens_and_named_inputs(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.down(self.norm(self.up(x)).relu().mean(1))
            return result

    x = torch.randn(2, 10, 6)
    net = transform(randomise(Tokens()), NestedChannels((0.5, 1.0)), x)
    by_name = activation_increments(net, {"x": x}, "norm")
    assert by_name["norm"].maps.shape == (2, 2, 10)
    torch.testing.assert_close(by_name["norm"].maps, activation_increments(net, (x,), "norm")["norm"].maps)
    by_name.plot(tmp_path / "tokens.png")


def test_the_mode_and_the_statistics_stay(x: Tensor) -> None:
    net = resnet(x, NestedChannels((0.5, 1.0)), depth=8).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    activation_increments(net, x)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_is_refused(x: Tensor) -> None:
    net = transform(Net(), NestedChannels((0.5, 1.0)), x, verify=False)
    with pytest.raises(ArgumentError, match=r"layer='stm': there is no such module; one that is: 'stem'"):
        activation_increments(net, x, "stm")
    with pytest.raises(ArgumentError, match="no activation shows what levels add: fc has no positions"):
        activation_increments(net, x, "fc")
    pair = transform((Net(), Net()), MutualDistillation(0), x, verify=False)
    with pytest.raises(ArgumentError, match="two networks"):
        activation_increments(pair, x)


@pytest.fixture
def found(x: Tensor) -> ActivationIncrements:
    return activation_increments(resnet(x, NestedChannels((0.5, 1.0)), depth=8), x)


def test_shown_as_text_and_json(found: ActivationIncrements) -> None:
    assert re.search(r"layer2\.0 +4 x 4 +100\.0 % +\d+\.\d %", str(found))
    assert "| fc | has no positions |" in found.to_markdown()
    read = json.loads(found.to_json())
    assert read["levels"] == ["width 0.5", "width 1"]
    assert [layer["name"] for layer in read["layers"]] == [layer.name for layer in found.layers]
    with pytest.raises(KeyError):
        found["fc"]


def test_plots(found: ActivationIncrements, tmp_path: Path) -> None:
    found.plot(tmp_path / "all.png")
    found.plot(tmp_path / "one.svg", layer="layer2.0", sample=1)
    drawn = (tmp_path / "one.svg").read_text()
    assert "layer2.0" in drawn
    assert "layer1.0" not in drawn
    with pytest.raises(ArgumentError, match="there is no sample 3: there are 3"):
        found.plot(tmp_path / "no.png", sample=3)
    with pytest.raises(ArgumentError, match="no such layer was looked at"):
        found.plot(tmp_path / "no.png", layer="stem")
    with pytest.raises(ArtifactError, match="its suffix chooses the format"):
        found.plot(tmp_path / "no.txt")


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "diagnostics_levels.md").read_text(), re.DOTALL)[0]
    assert "range(10)" in text
    monkeypatch.chdir(tmp_path)
    exec(text.replace("range(10)", "range(0)"), {})
    assert (tmp_path / "increments.png").is_file()
    assert (tmp_path / "norms.png").is_file()
