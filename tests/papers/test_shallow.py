"""The multi-exit baseline against the paper's figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytimeify.analysis.cost import cost
from anytimeify.capture import capture
from anytimeify.compiler import transform
from anytimeify.losses import JointLoss
from anytimeify.papers import recipe
from anytimeify.papers.networks import MultiScaleDenseNet, ResNeXt
from anytimeify.papers.shallow import exits, multi_scale_exits
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.runtime.model import AnytimeModel
from tests.papers.branches import ENTRIES, Nested

ENTRY = ENTRIES["shallow/resnext-29"]


@pytest.fixture(scope="module")
def net() -> AnytimeModel:
    torch.manual_seed(0)
    return ENTRY.recipe().build()  # verified


def test_exits_cost_what_the_paper_says(net: AnytimeModel) -> None:
    """Its classifiers read one position, these up to 16."""
    heads = [net.get_parameter(f"anytime.{level.index}.pooled.weight") for level in net.levels[:-1]]
    pooled = [level.cost.macs - head.numel() * 15 // 16 for level, head in zip(net.levels, heads, strict=False)]
    millions = [macs / 1e6 for macs in (*pooled, net.levels[-1].cost.macs)]
    assert millions == pytest.approx([12.5, 17.9, 23.3, 28.6, 34.0, 39.4, 44.8, 50.1], abs=0.05)
    assert [level.name for level in net.levels][:3] == [f"branch at layer{at}" for at in ("1.1", "1.2", "2.0")]
    assert not any(level.training_only for level in net.levels)
    assert net.resumable


def test_the_backbone(net: AnytimeModel) -> None:
    """The convolutions are those of the paper's anytime network, 390,608 parameters without its norms and heads."""
    backbone = ENTRY.backbone(10)
    assert isinstance(backbone, nn.Module)
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == 390_608 - 33_600 - 24_656
    assert len(convolutions) + 1 == 28 + 1  # the classifier is the 29th
    assert ENTRY.params() == 340_810
    full = [name for name, _ in net.named_parameters() if not name.startswith("anytime.")]
    assert full == [name for name, _ in backbone.named_parameters()]


def test_all_exits_are_trained(net: AnytimeModel) -> None:
    (x,) = ENTRY.recipe().example_inputs
    assert isinstance(net.loss, JointLoss)
    target = torch.tensor([1, 3])
    assert len(net.loss.terms(net(x), target)) == 8
    net.loss(net(x), target).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_depths() -> None:
    assert [branch.at for branch in exits(20)] == ["layer1.1", "layer2.0", "layer2.1", "layer3.0"]
    assert len(exits(65)) == 19
    with pytest.raises(ValueError, match="depth=30: these networks have"):
        ResNeXt(depth=30)
    captured = capture(ResNeXt(depth=65).eval(), (torch.zeros(2, 3, 32, 32),))
    assert cost(captured.program, captured.batch).macs / 1e6 == pytest.approx(114.6, abs=0.05)


@pytest.mark.parametrize(("blocks", "millions"), [(2, 12.5), (5, 28.6), (9, 50.1)])
def test_shallow_networks_by_themselves(blocks: int, millions: float) -> None:
    """Trained solely: the first blocks of the network, with its last norm and classifier."""
    network = Nested.of_entry(ENTRIES[f"shallow/resnext-29-blocks-{blocks}"])
    assert network.macs[0] / 1e6 == pytest.approx(millions, abs=0.05)
    assert network.params == (ENTRIES[f"shallow/resnext-29-blocks-{blocks}"].params(),)


def test_multi_scale_exits() -> None:
    """Every exit reads the coarsest scale; of the last layers there is only what the classifier reads."""
    backbone = MultiScaleDenseNet(7, layers=5)
    assert [list(layer) for layer in backbone.layers] == [["0", "1", "2"]] * 3 + [["1", "2"], ["2"]]  # type: ignore[call-overload]  # a ModuleDict each
    branches = multi_scale_exits(5)
    assert [branch.at for branch in branches] == ["layers.1.2", "layers.3.2"]
    x = torch.randn(2, 3, 16, 16)
    net = transform(backbone, AuxiliaryBranches(branches), x, loss=JointLoss())  # verified
    assert net.get_parameter("anytime.0.pooled.weight").shape == (7, 16 * (64 + 2 * 24))
    macs = [level.cost.macs for level in net.levels]
    assert macs == sorted(macs)
    net.loss(net(x), torch.tensor([1, 3])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_training_of_the_paper() -> None:
    training = recipe("shallow/resnext-29", 100).training
    assert (training.batch, training.epochs, training.optimiser.nesterov) == (64, 300, True)
    assert training.optimiser.weight_decay == 1e-4
    rates = {0: 0.1, 149: 0.1, 150: 0.01, 225: 0.001, 299: 0.001}
    assert {epoch: training.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)
