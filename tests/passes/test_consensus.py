"""A consensus of all levels as one more level, on every scheme."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from anytimeify import (
    AnytimeModel,
    ArgumentError,
    AuxiliaryBranches,
    Branch,
    Budget,
    Consensus,
    NestedChannels,
    SchemeError,
    Taxonomy,
    load,
    transform,
)
from anytimeify.contract.spec import verify
from anytimeify.losses import ConsensusLoss, InPlaceDistillation, JointLoss
from anytimeify.testing import assert_levels_equal_extracts
from tests.backbones import Shapes
from tests.passes.branches import Projected
from tests.passes.every_scheme import EVERY, LABELS, TAXONOMY, images, net_of

every_scheme = pytest.mark.parametrize("name", EVERY)
NESTED = NestedChannels((0.5, 1.0))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def mean_of_probabilities(predictions: list[Tensor]) -> Tensor:
    return torch.stack([one.softmax(1) for one in predictions]).mean(0)


def mlp(classes: int = 5, scheme: Any = NESTED, **options: Any) -> AnytimeModel:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))
    return transform(backbone, scheme, torch.randn(3, 4), **options)


@every_scheme
def test_the_average_is_the_last_level(name: str) -> None:
    net = net_of(name, None, "average")
    verify(net.rewritten.program)
    *levels, consensus = net(images()).levels
    assert net.levels[-1].name == "consensus"
    close(consensus.exp(), mean_of_probabilities(levels))
    close(net(images(), level=-1), consensus)
    assert_levels_equal_extracts(net, (images(),), tolerance=1e-4)
    steps = [*net.stream(images())]
    assert [level.index for level, _ in steps] == list(range(len(net.levels)))
    close(steps[-1][1], consensus)
    close([*net.staged().stream(images())][-1][1], consensus)


@every_scheme
def test_the_other_levels_are_as_they_are_without_it(name: str) -> None:
    alone, net = net_of(name, None), net_of(name, None, "average")
    assert net.levels[:-1] == alone.levels
    assert (net.full, net.backbones, net.resumable) == (alone.full, alone.backbones, alone.resumable)
    assert net.state_dict().keys() == alone.state_dict().keys()
    for one, other in zip(net(images()).members, alone(images()).members, strict=True):
        assert one.shape == other.shape
    # All levels together; what a stream or one pass shares is counted once.
    assert net.levels[-2].cost.macs <= net.levels[-1].cost.macs <= sum(level.cost.macs for level in alone.levels)
    for level in alone.levels:
        assert net.select(Budget(macs=level.cost.macs)).cost.macs == level.cost.macs
    assert net.select(Budget(macs=net.levels[-1].cost.macs)).name == "consensus"


@every_scheme
def test_a_learned_one_over_all_levels_and_granularities(name: str) -> None:
    net = copy.deepcopy(net_of(name, TAXONOMY, "learned"))
    *levels, (consensus,) = net(images()).levels
    assert net.granularities[-1] == ("fine",)
    weight, bias = net.consensus_parameters()
    assert weight.shape == (5, sum(TAXONOMY.sizes) * len(levels))
    close(consensus, torch.stack([level[0] for level in levels]).mean(0))  # at first
    with torch.no_grad():
        weight.normal_()
        bias.normal_()
    *levels, (consensus,) = net(images()).levels
    close(consensus, torch.cat([*chain.from_iterable(levels)], 1) @ weight.T + bias)
    close(net(images(), level=-1), consensus)
    close(net.extract(-1)(images()), consensus)
    close([*net.stream(images())][-1][1], consensus)
    close([*net.staged().stream(images())][-1][1], consensus)


@every_scheme
def test_saved_loaded_and_copied(name: str, tmp_path: Path) -> None:
    net = net_of(name, TAXONOMY, "learned")
    net.save(tmp_path / "net.anytime")
    for again in (load(tmp_path / "net.anytime"), copy.deepcopy(net)):
        assert again.consensus == Consensus("learned")
        assert again.levels == net.levels
        pairs = zip(_pytree.tree_leaves(tuple(again(images()))), _pytree.tree_leaves(tuple(net(images()))), strict=True)
        for one, other in pairs:
            close(one, other)
        close(again.loss(again(images()), LABELS), net.loss(net(images()), LABELS))


@pytest.mark.parametrize("name", ["channels", "ensemble", "branches", "two networks"])
@pytest.mark.parametrize("training", ["after", "joint"])
def test_what_a_learned_one_teaches(name: str, training: Any) -> None:
    net = copy.deepcopy(net_of(name, None, Consensus("learned", training)))
    *_, term = net.loss.terms(net(images()), LABELS).items()  # type: ignore[operator]  # an objective
    assert term[0] == "consensus/cross_entropy"
    term[1].backward()
    own = {id(parameter) for parameter in net.consensus_parameters()}
    others = [one for one in net.parameters() if one.requires_grad and id(one) not in own]
    assert all(one.grad is not None for one in net.consensus_parameters())
    assert any(one.grad is not None for one in others) == (training == "joint")
    net.zero_grad()
    net.loss(net(images()), LABELS).backward()
    assert all(one.grad is not None for one in net.parameters() if one.requires_grad)


def test_trained_afterwards_alone() -> None:
    torch.manual_seed(0)
    net, inputs, target = mlp(consensus="learned").eval(), torch.randn(16, 4), torch.arange(16) % 5
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimiser = torch.optim.SGD(net.consensus_parameters(), lr=0.5)
    losses = []
    for _ in range(50):
        losses.append(net.loss.terms(net(inputs), target)["consensus/cross_entropy"])  # type: ignore[operator]
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    changed = [name for name, tensor in net.state_dict().items() if not torch.equal(before[name], tensor)]
    assert changed == ["anytime.consensus.weight", "anytime.consensus.bias"]


def test_an_average_trains_nothing_unless_it_is_asked_to() -> None:
    net = mlp(consensus="average", scheme=NestedChannels((0.25, 0.5, 1.0)))
    inputs, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert "consensus/cross_entropy" not in net.loss.terms(net(inputs), target)  # type: ignore[operator]
    assert list(net.consensus_parameters()) == []
    net.loss = ConsensusLoss(InPlaceDistillation(), weight=1.0)
    assert "consensus/cross_entropy" in net.loss.terms(net(inputs), target)
    net.loss = JointLoss()  # knows levels alone, and takes it for one
    assert len(net.loss.terms(net(inputs), target)) == 4


@pytest.mark.parametrize(("widths", "count"), [((0.5, 1.0), 20_100), ((0.25, 0.5, 1.0), 30_100)])
def test_as_many_parameters_as_in_the_paper(widths: tuple[float, ...], count: int) -> None:
    net = mlp(100, NestedChannels(widths), consensus="learned")
    assert sum(one.numel() for one in net.consensus_parameters()) == count


def test_the_hierarchical_case_of_the_paper() -> None:
    """CIFAR-100: the core predicts 100 classes and 20, the full network 100. 220 -> 100; the average is of the two."""
    classes = Taxonomy.from_parents([c // 5 for c in range(100)])
    taxonomy = classes.with_levels(heads=(("fine", "coarse"), ("fine",)))
    learned = mlp(100, consensus="learned", taxonomy=taxonomy)
    assert sum(one.numel() for one in learned.consensus_parameters()) == 22_100
    average = mlp(100, consensus="average", taxonomy=taxonomy).eval()
    core, full, consensus = average(torch.randn(3, 4)).levels
    close(consensus[0].exp(), mean_of_probabilities([core[0], full[0]]))
    close(consensus[1].exp(), core[1].softmax(1))


def test_levels_for_training_only_have_no_vote() -> None:
    wide = AuxiliaryBranches((Branch("stage1", widths={"stage2": 4.0}), Branch("stage2")))
    net = transform(Projected((1, 1, 1), (4, 6, 8)), wide, images(), consensus="average").eval()
    assert [level.training_only for level in net.levels] == [True, False, False, False]
    *levels, consensus = net(images()).levels
    close(consensus.exp(), mean_of_probabilities(levels[1:]))


@pytest.mark.parametrize("consensus", ["average", "learned"])
def test_predictions_for_every_pixel(consensus: str) -> None:
    torch.manual_seed(0)
    taxonomy = Taxonomy.from_parents([0, 0, 1, 1])
    net = transform(Shapes(), NESTED, images(), taxonomy=taxonomy, consensus=consensus).eval()
    *levels, last = net(images()).levels
    assert last[0].shape == (3, 4, 8, 8)
    finest = [level[0] for level in levels]
    if consensus == "average":
        close(last[0].exp(), mean_of_probabilities(finest))
    else:
        close(last[0], torch.stack(finest).mean(0))
        assert sum(one.numel() for one in net.consensus_parameters()) == 4 * 12 + 4


def test_extracts_do_not_hold_what_only_training_needs() -> None:
    net = mlp(consensus="learned")
    assert "detach" in str(net.rewritten.program)
    assert "detach" not in net.extract(-1).code


def test_what_is_refused() -> None:
    with pytest.raises(SchemeError, match="consensus='majority': expected average or learned"):
        mlp(consensus="majority")
    with pytest.raises(SchemeError, match="training='before'"):
        Consensus("learned", "before")  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match="expected average, learned, or a Consensus"):
        mlp(consensus=3)
    with pytest.raises(SchemeError, match="this model has 1 level to combine"):
        mlp(consensus="average", scheme=NestedChannels((1.0,)))
    coarse = TAXONOMY.with_levels(heads=(("coarse",), ("fine",)))
    net = mlp(consensus="learned", taxonomy=coarse)
    with pytest.raises(ArgumentError, match="does not predict coarse; it predicts fine"):
        net.extract(-1, granularity="coarse")
    with pytest.raises(SchemeError, match=r"has the shape \[s\d+\]"):
        transform(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1), nn.Flatten(0)), NESTED, torch.randn(3, 4),
                  consensus="average")  # fmt: skip
