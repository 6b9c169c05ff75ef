"""Dense cross-layer mutual distillation: the pairs that the compiler makes against the paper's tables and its code."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify.compiler import transform
from anytimeify.losses import CrossLayerMutual
from anytimeify.papers import recipe
from anytimeify.papers.dhm import mobile
from anytimeify.papers.networks import CifarResNet, MobileNet
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.passes.schemes.mutual_distillation import MutualDistillation
from tests.papers.branches import ENTRIES, Made, Sizes

NETWORKS = [name for name in ENTRIES if name.startswith("dcm/")]

# Of one network: the backbone, then its branches in the order of their forks.
WIDE = (36_536_884, 20_145_060, 107_464_420)
MOBILENET = (3_309_476, 2_637_668, 5_484_132)
PARAMETERS = {
    "dcm/resnet-110": (1_733_812, 816_356, 5_219_940),
    "dcm/resnet-164": (1_684_404, 809_188, 5_043_300),
    "dcm/densenet-40-12": (1_060_132, 650_236, 2_038_996),
    "dcm/wrn-28-4": (5_872_180, 3_241_188, 17_230_180),
    "dcm/wrn-28-10": WIDE,
    "dcm/wrn-28-10-three-branches": (WIDE[0], 18_096_772, *WIDE[1:]),
    "dcm/wrn-28-10-one-branch": (WIDE[0], WIDE[2]),
    "dcm/wrn-28-10-mutual": WIDE[:1],
    # 4x4 positions of 160 and of 320 channels for 100 classes
    "dcm/wrn-28-10-apfc": (WIDE[0], 256_100, 512_100),
    "dcm/wrn-28-10-narrow": (WIDE[0], 5_183_140, 27_927_780),
    "dcm/densenet-40-12-narrow": (1_060_132, 294_412, 846_244),
    "dcm/mobilenet-cifar": MOBILENET,
    "dcm/wrn-28-10+mobilenet": WIDE,
    "dcm/wrn-28-10+resnet-110": WIDE,
    "dcm/wrn-28-10+wrn-28-4": WIDE,
    "dcm/resnet-18-imagenet": (11_689_512, 9_825_768, 31_968_232),
    "dcm/resnet-50-imagenet": (25_557_032, 16_297_960, 58_668_008),
    "dcm/mobilenetv2-imagenet": (3_504_872, 2_725_704, 3_474_280),
}
SECOND = {
    **PARAMETERS,
    "dcm/wrn-28-10+mobilenet": MOBILENET,
    **{f"dcm/wrn-28-10+{name}": PARAMETERS[f"dcm/{name}"] for name in ("resnet-110", "wrn-28-4")},
}
FAST = (
    "dcm/mobilenet-cifar",
    "dcm/wrn-28-10-apfc",
)  # the networks of most others are those of the tests beside this one


@cache
def made(name: str) -> Made:
    return Sizes.of_entry(ENTRIES[name]).under(ENTRIES[name].scheme)


def of_network(network: Made, half: str) -> tuple[int, ...]:
    """Parameters of a backbone and of its branches in the order of their forks."""
    levels = [network.rewritten.levels[place].name for _, place in network.rewritten.members]
    *branches, full = (network.params[name] for name in levels if name.startswith(f"{half}/"))
    return (full, *branches)


def test_every_network_is_counted() -> None:
    assert sorted(PARAMETERS) == sorted(NETWORKS)
    assert {name: ENTRIES[name].params() for name in NETWORKS} == {
        name: PARAMETERS[name][0] + SECOND[name][0] for name in NETWORKS
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PARAMETERS]
)
def test_parameters_and_resolutions(name: str) -> None:
    """Those of the backbones and of each branch alone; each branch halves the size like the backbones do."""
    network = made(name)
    assert (of_network(network, "first"), of_network(network, "second")) == (PARAMETERS[name], SECOND[name])
    if not name.endswith("apfc"):  # whose heads pool
        assert set(network.halvings().values()) == {5 if ENTRIES[name].num_classes == 1000 else 2}
    if name == "dcm/wrn-28-10":
        assert network.params.total() == 328_292_728


def test_repeats_of_the_mobile_branch() -> None:
    """Not printed: three in the authors' code."""
    sizes = Sizes.of(lambda num_classes: MobileNet(num_classes, early_stride=1), (3, 32, 32), 100)
    found = {repeats: sizes.under(AuxiliaryBranches(mobile(repeats))) for repeats in (1, 3, 5)}
    assert {repeats: tuple(network.params.values()) for repeats, network in found.items()} == {
        1: (3_309_476, 2_100_068, 5_484_132),
        3: MOBILENET,
        5: (3_309_476, 3_175_268, 5_484_132),
    }
    assert [network.params.total() for network in found.values()] == [10_893_676, 11_431_276, 11_968_876]
    late = found[3].widths(1)  # the depthwise layer at the fork keeps the trunk's channels
    assert list(late.values()) == [512, 2048, 2048, 2048, 100]


@pytest.mark.slow
def test_narrow_branches() -> None:
    """Half the channels of the paper's tables; of the late one, as many as the backbone has."""
    early, late = blank_of_narrow(4, 2, 4)
    assert PARAMETERS["dcm/wrn-28-10-narrow"][1:] == (early, late)
    widths = [made("dcm/wrn-28-10-narrow").widths(level) for level in (0, 2)]
    assert [set(one.values()) for one in widths] == [{160, 320, 100}, {640, 100}]


def blank_of_narrow(middle: int, last: int, late: int) -> tuple[int, int]:
    """Parameters of the branches of WRN-28-10, counted by their layers."""

    def stage(inputs: int, width: int, blocks: int) -> int:
        first = 2 * (inputs + width) + 9 * width * (inputs + width) + inputs * width
        return first + (blocks - 1) * (4 * width + 18 * width**2)

    def head(width: int) -> int:
        return 2 * width + 100 * (width + 1)

    early = stage(160, 160, middle) + stage(160, 320, last) + head(320)
    return early, stage(320, 640, late) + head(640)


def test_forks() -> None:
    scheme = ENTRIES["dcm/wrn-28-10-three-branches"].scheme
    assert isinstance(scheme, MutualDistillation)
    assert isinstance(scheme.branches, tuple)
    one, none = (ENTRIES[f"dcm/wrn-28-10-{name}"].scheme for name in ("one-branch", "mutual"))
    assert isinstance(one, MutualDistillation)
    assert isinstance(none, MutualDistillation)
    assert (one.branches, none.branches) == (scheme.branches[2:], 0)
    assert [branch.at for branch in scheme.branches if isinstance(branch, Branch)] == ["conv1", "layer1", "layer2"]


def test_twins_start_apart() -> None:
    first, second = recipe("dcm/densenet-40-12").backbones
    assert first.state_dict().keys() == second.state_dict().keys()
    assert not torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])


def test_wide_networks_start_as_in_the_authors_code() -> None:
    (network, _) = recipe("dcm/wrn-28-4").backbones
    norms = torch.cat([module.weight.detach() for module in network.modules() if isinstance(module, nn.BatchNorm2d)])
    assert float(norms.min()) >= 0
    assert float(norms.max()) <= 1
    assert float(norms.mean()) == pytest.approx(0.5, abs=0.02)


def test_a_small_pair_is_made_and_trained() -> None:
    loss: Any = recipe("dcm/resnet-110").loss
    branches = (Branch("layer1"), Branch("layer2", widths={"layer3": 2.0}))
    x = torch.randn(2, 3, 16, 16)
    net = transform((CifarResNet(7, depth=8), CifarResNet(7, depth=8)), MutualDistillation(branches), (x,), loss=loss)
    out = net(x)
    assert len(loss.terms(out, torch.tensor([1, 3]))) == 6 + 18
    net.loss(out, torch.tensor([1, 3])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_objective_of_the_paper() -> None:
    for name in NETWORKS:
        loss = ENTRIES[name].loss()
        assert isinstance(loss, CrossLayerMutual)
        assert loss.weight == 1.0


@pytest.mark.parametrize(
    ("pattern", "batch", "weight_decay", "nesterov", "epochs", "rates"),
    [
        (r"(resnet-\d+|mobilenet-cifar)$", 64, 1e-4, False, 200, {59: 0.1, 60: 0.01, 120: 1e-3, 180: 1e-4}),
        (r"densenet-40-12", 64, 1e-4, True, 300, {149: 0.1, 150: 0.01, 225: 0.001}),
        (r"wrn", 128, 5e-4, False, 200, {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        (r"resnet-\d+-imagenet$", 256, 1e-4, False, 100, {29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4}),
        (r"mobilenetv2", 256, 4e-5, False, 150, {0: 0.05, 75: 0.025, 150: 0.0}),
    ],
)
def test_training_of_the_paper(
    pattern: str, batch: int, weight_decay: float, nesterov: bool, epochs: int, rates: dict[int, float]
) -> None:
    matching = [entry for name, entry in ENTRIES.items() if re.match(f"dcm/{pattern}", name)]
    assert matching
    for training in (entry.training for entry in matching):
        assert (training.batch, training.epochs) == (batch, epochs)
        assert (training.optimiser.weight_decay, training.optimiser.nesterov) == (weight_decay, nesterov)
        assert {epoch: training.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_verified(name: str) -> None:
    """The whole transform with weights, at the size of the paper's images."""
    net = recipe(name).build()
    total = sum(PARAMETERS[name]) + sum(SECOND[name])
    assert sum(parameter.numel() for parameter in net.parameters()) == total
