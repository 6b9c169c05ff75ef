"""Two networks side by side: each stays what it is, its heads are levels, and neither reaches the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify import (
    AnytimeModel,
    Branch,
    Budget,
    CaptureError,
    MutualDistillation,
    NestedChannels,
    SchemeError,
    load,
    parse_scheme,
    transform,
)
from anytimeify.losses import JointLoss
from anytimeify.testing import assert_levels_equal_extracts
from tests.passes.branches import Padded, Projected, Separable, images
from tests.rounding import close

HEADS = ("branch at stage1", "branch at stage2", "full")
NAMES = [f"{network}/{head}" for network in ("first", "second") for head in HEADS]


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Projected().eval(), Separable().eval()


@pytest.fixture(scope="module")
def net(pair: tuple[nn.Module, nn.Module]) -> AnytimeModel:
    return net_of(pair)


def net_of(pair: tuple[nn.Module, nn.Module], **options: Any) -> AnytimeModel:
    return transform(pair, MutualDistillation(**options), (images(),), loss=JointLoss()).eval()


def test_each_backbone_is_a_level(net: AnytimeModel, pair: tuple[nn.Module, nn.Module]) -> None:
    levels = net(images()).levels
    assert len(levels) == 6
    for place, backbone in zip(net.backbones, pair, strict=True):
        assert close(levels[place], backbone(images()))
    assert_levels_equal_extracts(net, (images(),))


def test_levels_are_cheapest_first_and_say_whose_they_are(net: AnytimeModel) -> None:
    macs = [level.cost.macs for level in net.levels]
    assert macs == sorted(macs)
    assert sorted(level.name for level in net.levels) == sorted(NAMES)


def test_members_are_the_heads_of_the_first_then_of_the_second(net: AnytimeModel) -> None:
    outputs = net(images())
    names = [level.name for level in net.levels]
    for member, name in zip(outputs.members, NAMES, strict=True):
        assert torch.equal(member, outputs.levels[names.index(name)])


def test_no_gradient_crosses_over(net: AnytimeModel) -> None:
    for member in (0, 5):
        net.zero_grad()
        net(images()).members[member].sum().backward()
        reached = [name for name, parameter in net.named_parameters() if parameter.grad is not None]
        other = "second" if member < 3 else "first"
        assert reached
        assert not [name for name in reached if other in name.split(".")]


def test_a_stream_gives_every_level(net: AnytimeModel) -> None:
    expected = net(images()).levels
    for level, prediction in net.stream(images()):
        torch.testing.assert_close(prediction, expected[level.index])


def test_the_best_within_a_budget(net: AnytimeModel) -> None:
    assert net.select(Budget(macs=1e12)).index == net.full == 5
    assert net.select(Budget(macs=net.levels[0].cost.macs)).index == 0


def test_saved_and_read_again(net: AnytimeModel, tmp_path: Path) -> None:
    net.save(tmp_path / "pair")
    again = load(tmp_path / "pair", loss=JointLoss())
    assert again.backbones == net.backbones
    for one, other in zip(net(images()).members, again(images()).members, strict=True):
        assert close(one, other)


def test_state_dicts_have_every_batch_norms_count(net: AnytimeModel) -> None:
    state = dict(net.state_dict())  # without the metadata by which torch forgives a missing count
    means = [name for name in state if name.endswith("running_mean")]
    assert means
    assert all(name.replace("running_mean", "num_batches_tracked") in state for name in means)
    net.load_state_dict(state)


def test_each_network_has_branches_of_its_own(pair: tuple[nn.Module, nn.Module]) -> None:
    net = net_of(pair, branches=((Branch("stage1", {"stage3": 1}),), (Branch("stage2", widths={"stage3": 2.0}),)))
    assert [level.training_only for level in net.levels].count(True) == 1
    assert any(level.name == "second/branch at stage2" for level in net.levels)


def test_without_branches_it_is_deep_mutual_learning(pair: tuple[nn.Module, nn.Module]) -> None:
    outputs = net_of(pair, branches=0)(images())
    assert len(outputs.levels) == len(outputs.members) == 2


def test_a_network_can_be_its_own_peer() -> None:
    backbone = Padded().eval()
    net = net_of((backbone, backbone))
    outputs = net(images())
    assert close(outputs.members[2], outputs.members[5])
    assert not close(outputs.members[0], outputs.members[3])  # branches are drawn for each


def test_what_is_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(SchemeError, match="takes a pair of backbones"):
        transform(pair[0], MutualDistillation(), (images(),))
    with pytest.raises(SchemeError, match="takes one backbone; 2 were given"):
        transform(pair, NestedChannels(), (images(),))
    with pytest.raises(SchemeError, match="the first network has 1 and the second 2"):
        MutualDistillation(branches=((Branch("a"),), (Branch("a"), Branch("b"))))
    with pytest.raises(SchemeError, match="the first gives 5 numbers, the second 7"):
        transform((pair[0], Projected(classes=7)), MutualDistillation(), (images(),))
    with pytest.raises(CaptureError):
        transform((pair[0], nn.Linear(3, 4)), MutualDistillation(), (images(),))


@pytest.mark.parametrize(
    "scheme",
    [
        MutualDistillation(),
        MutualDistillation(0),
        MutualDistillation((Branch("a"), Branch("b"))),
        MutualDistillation(((Branch("a", {"b": 1}),), (Branch("c"),))),
    ],
)
def test_schemes_are_written_and_read(scheme: MutualDistillation) -> None:
    assert parse_scheme(str(scheme)) == scheme
