"""Dynamic hierarchical mimicking: the branches that the compiler makes against the paper's tables and its code."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn

from anytimeify.compiler import transform
from anytimeify.losses import HierarchicalMimicking
from anytimeify.papers import recipe
from anytimeify.papers.dhm import dense, mobile, residual
from anytimeify.papers.networks import (
    CifarResNet,
    DenseNet,
    MobileNet,
    WideResNet,
    cifar_resnet,
    densenet,
    mobilenet,
    wide_resnet,
)
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from tests.papers.branches import ENTRIES, Made, Sizes

NETWORKS = [name for name in ENTRIES if name.startswith("dhm/")]

# The backbone, the early and the late branch.
PARAMETERS = {
    "dhm/resnet-32": (470_004, 298_212, 1_379_428),
    "dhm/densenet-40-12": (1_060_132, 650_236, 2_038_996),
    "dhm/wrn-28-10": (36_536_884, 20_145_060, 107_464_420),
    "dhm/resnet-50-imagenet": (25_557_032, 16_297_960, 58_668_008),
    # Not in print: the layers of the tables, counted with the modules that the backbones are made of.
    "dhm/resnet-110": (1_733_812, 816_356, 5_219_940),
    "dhm/resnet-1202": (19_427_124, 9_237_860, 58_987_108),
    "dhm/densenet-100-12": (7_084_852, 2_494_436, 14_197_316),
    "dhm/wrn-16-8": (11_007_540, 5_822_820, 31_044_196),
    "dhm/resnet-18-imagenet": (11_689_512, 9_825_768, 31_968_232),
    "dhm/resnet-101-imagenet": (44_549_160, 26_352_616, 58_668_008),
    "dhm/resnet-152-imagenet": (60_192_808, 33_055_720, 58_668_008),
    "dhm/mobilenet-reid": (4_231_976, 3_560_168, 7_328_232),
    "dhm/resnet-32-bernoulli": (470_004, 298_212, 1_379_428),
    "dhm/wrn-28-10-dropout": (36_536_884, 20_145_060, 107_464_420),
    "dhm/resnet-18-imagenet-three-branches": (11_689_512, 10_055_912, 9_825_768, 31_968_232),
}
TOTALS = {
    "dhm/resnet-32": 2_147_644,
    "dhm/densenet-40-12": 3_749_364,
    "dhm/wrn-28-10": 164_146_364,
    "dhm/resnet-50-imagenet": 100_523_000,
}


@cache
def made(name: str) -> Made:
    return Sizes.of_entry(ENTRIES[name]).under(ENTRIES[name].scheme)


def test_every_network_is_counted() -> None:
    assert list(PARAMETERS) == sorted(NETWORKS, key=list(PARAMETERS).index)
    assert {name: ENTRIES[name].params() for name in NETWORKS} == {name: PARAMETERS[name][0] for name in NETWORKS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TOTALS else pytest.mark.slow) for name in PARAMETERS]
)
def test_parameters_and_resolutions(name: str) -> None:
    """Those of the backbone, of each branch alone, and of all; each branch halves the size like the backbone does."""
    network = made(name)
    *branches, full = (level.name for level in network.rewritten.levels)
    assert network.params == dict(zip((full, *branches), PARAMETERS[name], strict=True))
    assert network.params.total() == TOTALS.get(name, sum(PARAMETERS[name]))
    assert set(network.halvings().values()) == {5 if ENTRIES[name].num_classes == 1000 else 2}


@pytest.mark.slow
def test_the_stem_that_is_printed() -> None:
    backbone = partial(DenseNet, depth=40, stem=24)
    network = Sizes.of(backbone, (3, 32, 32), 100).under(AuxiliaryBranches(dense((12, 6), depth=40, stem=24)))
    assert list(network.params.values()) == [1_100_428, 671_836, 2_071_108]
    assert network.params.total() == 3_843_372


def test_layers_of_the_branches() -> None:
    network = made("dhm/resnet-32")
    assert [level.name for level in network.rewritten.levels] == ["branch at layer1", "branch at layer2", "full"]
    assert [level.training_only for level in network.rewritten.levels] == [
        False,
        True,
        False,
    ]  # the wide one costs twice the backbone
    early = {
        f"{stage}.{block}.{layer}": width
        for stage, width, blocks in [("layer2", 32, 5), ("layer3", 64, 3)]
        for block in range(blocks)
        for layer in ["conv1", "conv2"]
    }
    assert network.widths(0) == {**early, "fc": 100}
    late = {f"layer3.{block}.{layer}": 128 for block in range(5) for layer in ("conv1", "conv2")}
    assert network.widths(1) == {**late, "fc": 100}


def test_growth_of_the_dense_branches() -> None:
    network = made("dhm/densenet-40-12")
    early = {f"layer2.{layer}.conv": 12 for layer in range(12)} | {f"layer3.{layer}.conv": 12 for layer in range(6)}
    assert network.widths(0) == {**early, "transition2.conv": 304, "fc": 100}
    assert network.widths(1) == {**{f"layer3.{layer}.conv": 36 for layer in range(12)}, "fc": 100}


@pytest.mark.parametrize(("depth", "repeats", "width"), [(40, (12, 6), None), (40, (6, 6), 232), (100, (16, 16), 592)])
def test_a_transition_keeps_the_channels_that_its_branch_has(
    depth: int, repeats: tuple[int, int], width: int | None
) -> None:
    early, late = dense(repeats, depth=depth)
    channels = DenseNet(depth=depth).transition2.conv.out_channels
    widths = {name: multiple * channels for name, multiple in dict(early.widths).items()}
    assert widths == ({} if width is None else {"transition2": pytest.approx(width, abs=1e-9)})
    assert dict(late.widths) == {"layer3": 3.0}


def test_branches_that_are_drawn_once_an_epoch() -> None:
    entry = ENTRIES["dhm/resnet-32-bernoulli"]
    loss = entry.loss()
    assert isinstance(loss, HierarchicalMimicking)
    assert isinstance(entry.scheme, AuxiliaryBranches)
    for drawn in (loss, entry.scheme):
        assert (drawn.sampling, drawn.probability, drawn.per) == ("bernoulli", 0.5, "epoch")


def test_dropout() -> None:
    (backbone,) = recipe("dhm/wrn-28-10-dropout").backbones
    rates = [module.p for module in backbone.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.3] * 12


def test_options() -> None:
    assert mobile() == mobile(repeats=3)
    assert mobile(repeats=5)[0] == Branch("layer1", repeats={"layer2.body": 5})


# A backbone, and twice the same to be changed by hand into its branches.
Three: TypeAlias = tuple[Any, Any, Any]


def three(make: Callable[[], nn.Module]) -> Three:
    return make(), make(), make()


def _resnet() -> Three:
    backbone, early, late = three(lambda: CifarResNet(7, depth=20))
    early.layer2, early.layer3 = early.layer2[:2], early.layer3[:1]
    late.layer3, late.fc = cifar_resnet._stage(cifar_resnet.Basic, 32, 128, 3, stride=2), nn.Linear(128, 7)
    return backbone, early, late


def _bottlenecks() -> Three:
    backbone, early, late = three(lambda: CifarResNet(7, depth=29, block="bottleneck"))
    early.layer2, early.layer3 = early.layer2[:2], early.layer3[:1]
    late.layer3, late.fc = cifar_resnet._stage(cifar_resnet.Bottleneck, 128, 128, 3, stride=2), nn.Linear(512, 7)
    return backbone, early, late


def _wide() -> Three:
    backbone, early, late = three(lambda: WideResNet(7, depth=22, widening=1))
    early.layer2, early.layer3 = early.layer2[:2], early.layer3[:1]
    late.layer3, late.bn, late.fc = wide_resnet._stage(32, 128, 3, 2, 0.0), nn.BatchNorm2d(128), nn.Linear(128, 7)
    return backbone, early, late


def _dense() -> Three:
    backbone, early, late = three(lambda: DenseNet(7, depth=13))
    middle = 16 + (3 + 2) * 12
    early.layer2, early.transition2 = early.layer2[:2], densenet.Transition(middle)
    early.layer3, early.bn, early.fc = densenet._block(middle, 12, 1), nn.BatchNorm2d(middle + 12), nn.Linear(88, 7)
    late.layer3, late.bn, late.fc = densenet._block(88, 36, 3), nn.BatchNorm2d(88 + 108), nn.Linear(88 + 108, 7)
    return backbone, early, late


def _mobile() -> Three:
    backbone, early, late = three(lambda: MobileNet(7, early_stride=1))
    early.layer2 = nn.Sequential(OrderedDict(down=early.layer2.down, body=early.layer2.body[:3]))
    late.layer3, late.fc = mobilenet._stage(512, 2048, 1), nn.Linear(2048, 7)
    return backbone, early, late


@pytest.mark.parametrize(
    ("make", "branches"),
    [
        (_resnet, residual((2, 1))),
        (_bottlenecks, residual((2, 1))),
        (_wide, residual((2, 1))),
        (_dense, dense((2, 1), depth=13)),
        (_mobile, mobile()),
    ],
    ids=["resnet", "bottlenecks", "wide", "dense", "mobile"],
)
def test_branches_are_the_networks_that_the_authors_write_down(
    make: Callable[[], Three], branches: tuple[Branch, Branch]
) -> None:
    """Layer by layer: what is extracted of a branch loads into the network that is written by hand, and agrees."""
    backbone, *written = make()
    x = torch.randn(2, 3, 16, 16)
    net = transform(backbone, AuxiliaryBranches(branches), (x,), verify=False).train()
    for _ in range(2):
        net(x)  # statistics of norms that are not those of a new network
    net.eval()
    for level, by_hand in enumerate(written):
        extracted = net.extract(level)
        missing, unexpected = by_hand.load_state_dict(extracted.state_dict(), strict=False)
        assert (unexpected, [name for name in missing if not name.endswith("num_batches_tracked")]) == ([], [])
        torch.testing.assert_close(extracted(x), by_hand.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_small_one_is_made_and_trained() -> None:
    """A step of the whole way: the transform is verified, its loss reaches the branches and the trunk."""
    loss: Any = recipe("dhm/resnet-32").loss
    scheme = AuxiliaryBranches((Branch("layer1", {"layer2": 1, "layer3": 1}), Branch("layer2", widths={"layer3": 2.0})))
    x = torch.randn(2, 3, 16, 16)
    net = transform(CifarResNet(7, depth=14), scheme, (x,), loss=loss)
    out = net(x)
    terms = loss.terms(out, torch.tensor([1, 3]))
    assert len(terms) == 3 + 6
    net.loss(out, torch.tensor([1, 3])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_objective_of_the_paper() -> None:
    for name in NETWORKS:
        loss = ENTRIES[name].loss()
        assert isinstance(loss, HierarchicalMimicking)
        sampling = "bernoulli" if name.endswith("bernoulli") else "all"
        assert (loss.alpha, loss.temperature, loss.sampling) == (1.0, 1.0, sampling)


@pytest.mark.parametrize(
    ("pattern", "batch", "weight_decay", "epochs", "rates"),
    [
        (r"resnet-\d+$", 128, 1e-4, 164, {0: 0.1, 80: 0.1, 81: 0.01, 122: 0.001}),
        (r"densenet-\d+-12$", 64, 1e-4, 300, {149: 0.1, 150: 0.01, 225: 0.001}),
        (r"wrn-\d+-\d+$", 128, 5e-4, 200, {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        (r"resnet-\d+-imagenet$", 256, 1e-4, 90, {30: 0.1, 31: 0.01, 61: 0.001}),
    ],
)
def test_training_of_the_paper(
    pattern: str, batch: int, weight_decay: float, epochs: int, rates: dict[int, float]
) -> None:
    matching = [entry for name, entry in ENTRIES.items() if re.match(f"dhm/{pattern}", name)]
    assert matching
    for training in (entry.training for entry in matching):
        assert (training.batch, training.epochs) == (batch, epochs)
        assert (training.optimiser.weight_decay, training.optimiser.nesterov) == (weight_decay, False)
        assert {epoch: training.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_verified(name: str) -> None:
    """The whole transform with weights, at the size of the paper's images."""
    net = recipe(name).build()
    assert sum(parameter.numel() for parameter in net.parameters()) == sum(PARAMETERS[name])
    assert net.levels[-1].cost.params == PARAMETERS[name][0]
