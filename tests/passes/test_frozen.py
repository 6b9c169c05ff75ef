"""Partly frozen networks: what every scheme makes of copies of what is not trained."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    AuxiliaryBranches,
    Branch,
    HierarchicalEnsemble,
    MutualDistillation,
    NestedChannels,
    Taxonomy,
    transform,
)
from anytimeify._torch import prepare_torchvision
from anytimeify.capture import capture
from anytimeify.passes.rewrites.frozen import frozen
from anytimeify.passes.scheme import Scheme

TAXONOMY = Taxonomy.from_parents([0, 0, 1, 1, 1])
BLUR = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 2.0, 1.0]) / 16


class Block(nn.Module):
    """A convolution, a fixed blur of every channel, a norm with statistics, and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.blur = nn.Parameter(BLUR.expand(width, 1, 3, 3).clone(), requires_grad=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(self.conv(x), self.blur, padding=1, groups=len(self.blur))
        return x + torch.relu(self.norm(blurred))


class Blurred(nn.Module):
    """Two stages of such blocks with a layer between them, and a classifier. The second stage is frozen but for the
    filters of its last block, and its statistics are those of another data set."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stage1 = nn.Sequential(Block(width), Block(width))
        self.between = nn.Conv2d(width, width, 1)
        self.stage2 = nn.Sequential(Block(width), Block(width), Block(width))
        self.head = nn.Linear(width, 5)
        self.stage2.requires_grad_(False)
        self.get_parameter("stage2.2.conv.weight").requires_grad_(True)
        for module in self.stage2.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]  # there are statistics
                nn.init.uniform_(module.weight, 0.5, 1.5)
                module.num_batches_tracked.fill_(7)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.between(self.stage1(self.stem(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Tokens(nn.Module):
    """Tokens with a fixed position table that is added twice, behind the first layer too, and frozen attention."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.first, self.second = self.layer(width), self.layer(width)
        angles = torch.arange(4)[:, None] / 100 ** (torch.arange(width // 2) / (width // 2))
        self.positions = nn.Parameter(torch.cat([angles.sin(), angles.cos()], 1)[None], requires_grad=False)
        self.head = nn.Linear(width, 5)
        self.second.linear1.requires_grad_(False)

    @staticmethod
    def layer(width: int) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(width, 2, 24, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.embed(x))
        result: Tensor = self.head(self.second(x + self.positions).mean(1))
        return result


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def net_of(
    backbone: nn.Module, scheme: Scheme, x: Tensor | None = None, taxonomy: Taxonomy | None = None
) -> AnytimeModel:
    torch.manual_seed(0)
    return transform(backbone, scheme, images() if x is None else x, taxonomy=taxonomy)


def assert_steps(net: AnytimeModel, x: Tensor | None = None) -> None:
    """Every parameter that asks for a gradient gets one, as distributed training waits for it, and no other does."""
    outputs = net.train()(images() if x is None else x)
    sum(level.square().sum() for level in outputs.levels + outputs.members).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


STILL = {
    *(f"stage1.{block}.blur" for block in (0, 1)),
    *(f"stage2.{block}.{name}" for block in (0, 1, 2) for name in ("blur", "norm.weight", "norm.bias")),
    *(f"stage2.{block}.norm.running_{name}" for block in (0, 1, 2) for name in ("mean", "var")),
    *(f"stage2.{block}.norm.num_batches_tracked" for block in (0, 1, 2)),
    *(f"stage2.{block}.conv.weight" for block in (0, 1)),
}


def test_what_is_not_trained() -> None:
    assert frozen(capture(Blurred(), images()).program) == STILL


def test_tied_names_are_frozen_together() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    net[0].weight.requires_grad_(False)
    assert frozen(capture(net, torch.randn(2, 4)).program) == {"0.weight", "2.weight"}


# Ensembles.


@pytest.mark.parametrize("init", ["fresh", "copy"])
@pytest.mark.parametrize("fuse", [True, False])
def test_members_of_an_ensemble(init: str, fuse: bool) -> None:
    backbone = Blurred()
    net = net_of(backbone, HierarchicalEnsemble(cuts=("stem", "between"), init=init, fuse=fuse))  # type: ignore[arg-type]
    state, own = net.state_dict(), backbone.state_dict()
    for name in sorted(STILL):
        if "num_batches" not in name:
            parts = state[name].split(len(own[name]))
            assert len(parts) == (4 if "stage2" in name else 2)
            assert all(torch.equal(part, own[name]) for part in parts), name
    fresh = net.get_parameter("stage2.2.conv.weight").detach().chunk(4)
    assert torch.equal(fresh[0], fresh[1]) == (init == "copy")
    wanted = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == wanted
    assert_steps(net)


def test_members_that_only_have_frozen_parts_are_said_to_be_alike() -> None:
    backbone = Blurred().requires_grad_(False)
    backbone.head.requires_grad_(True)
    net = net_of(backbone, HierarchicalEnsemble(cuts=("stem", "stage2")))
    (note,) = (note for note in net.report().notes if "all the same" in note)
    assert note.startswith("replicas behind stem")
    leaves = net.eval()(images()).members
    assert not torch.equal(leaves[0], leaves[1])
    net.get_parameter("head.weight").data.copy_(backbone.head.weight.repeat(4, 1))
    net.get_parameter("head.bias").data.copy_(backbone.head.bias.repeat(4))
    for leaf in net(images()).members:
        torch.testing.assert_close(leaf, backbone.eval()(images()))


# Branches.


def branch(net: AnytimeModel, level: int = 0) -> dict[str, Tensor]:
    prefix = f"anytime.{level}."
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_a_branch_of_the_same_widths() -> None:
    backbone = Blurred()
    net = net_of(backbone, AuxiliaryBranches((Branch("between", repeats={"stage2": 2}),)))
    own, tensors = branch(net), {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    assert own.keys() == {name for name in tensors if name.startswith(("stage2.0", "stage2.1", "head"))}
    for name, tensor in own.items():
        assert torch.equal(tensor, tensors[name]) == (name in STILL), name
        assert tensor.requires_grad == tensors[name].requires_grad, name
    assert not any("frozen" in note for note in net.report().notes)
    assert_steps(net)


def test_a_narrower_branch_has_the_prefix() -> None:
    backbone = Blurred()
    net = net_of(backbone, AuxiliaryBranches((Branch("stage1", widths={"between": 0.5}),)))
    own, whole = branch(net), backbone.state_dict()
    assert own["stage2.0.conv.weight"].shape == (8, 8, 3, 3)
    for name in STILL & own.keys():
        part = tuple(slice(size) for size in own[name].shape)
        assert torch.equal(own[name], whole[name][part]), name
        assert not own[name].requires_grad
    assert own["between.weight"].requires_grad
    assert_steps(net)


def test_a_wider_branch_trains_what_it_cannot_hold_and_says_so() -> None:
    backbone = Blurred()
    net = net_of(backbone, AuxiliaryBranches((Branch("stage1", widths={"between": 2.0}),)))
    own = branch(net)
    blur = own["stage2.0.blur"]
    assert blur.shape == (32, 1, 3, 3)
    assert torch.equal(blur, BLUR.expand_as(blur))  # the same for every channel, so for more of them too
    assert not blur.requires_grad
    assert own["stage2.0.conv.weight"].requires_grad
    assert own["stage2.0.norm.weight"].requires_grad
    assert torch.equal(own["stage2.0.norm.weight"], torch.ones(32))
    assert torch.equal(own["stage2.0.norm.running_mean"], torch.zeros(32))
    assert own["stage2.0.norm.num_batches_tracked"] == 0
    (note,) = (note for note in net.report().notes if "wider" in note)
    assert "level 0" in note
    assert "stage2.0.conv.weight" in note
    assert "blur" not in note
    assert_steps(net)


def test_two_networks_that_teach_each_other() -> None:
    backbones = Blurred(), Blurred(8)
    net = transform(backbones, MutualDistillation((Branch("between", repeats={"stage2": 1}),)), images())
    for half, backbone in zip(("first", "second"), backbones, strict=True):
        whole = backbone.state_dict()
        (level,) = (one.index for one in net.levels if one.name.startswith(f"{half}/branch"))
        own = branch(net, level)
        assert f"{half}.stage2.0.blur" in own
        for name, tensor in own.items():
            source = name.removeprefix(f"{half}.")
            assert torch.equal(tensor, whole[source]) == (source in STILL), name
            assert tensor.requires_grad == (isinstance(tensor, nn.Parameter) and source not in STILL), name
    assert_steps(net)


@pytest.mark.parametrize("scheme", [HierarchicalEnsemble(cuts=("first",)), AuxiliaryBranches((Branch("first"),))])
def test_a_fixed_table_stays_fixed(scheme: Scheme) -> None:
    torch.manual_seed(0)
    backbone, x = Tokens(), torch.randn(2, 4, 6)
    net = net_of(backbone, scheme, x)
    for name in ("positions", "second.linear1.weight", "second.linear1.bias"):
        source = backbone.get_parameter(name)
        copies = [tensor for own, tensor in net.named_parameters() if own.endswith(name)]
        assert sum(len(copy) for copy in copies) == 2 * len(source), name
        assert not any(copy.requires_grad for copy in copies)
        assert all(torch.equal(part, source) for copy in copies for part in copy.split(len(source)))
    assert_steps(net, x)


# Heads and private tensors.


def test_heads_of_coarser_labels_train_though_the_backbones_is_frozen() -> None:
    backbone = Blurred()
    backbone.head.requires_grad_(False)
    net = net_of(backbone, NestedChannels((0.5, 1.0), heads="shared"), taxonomy=TAXONOMY)
    coarse = {name: tensor for name, tensor in net.named_parameters() if "taxonomy.coarse" in name}
    assert coarse
    assert all(tensor.requires_grad for tensor in coarse.values())
    (note,) = (note for note in net.report().notes if "coarser" in note)
    assert "head.weight, head.bias" in note


@pytest.mark.parametrize("connectivity", ["dense", "triangular"])
def test_private_norms_and_heads_are_frozen_prefixes(connectivity: str) -> None:
    backbone = Blurred()
    backbone.head.requires_grad_(False)
    net = net_of(backbone, NestedChannels((0.5, 1.0), connectivity=connectivity))  # type: ignore[arg-type]
    own, whole = branch(net), backbone.state_dict()
    assert "head.weight" in own
    assert ("stage2.0.norm.weight" in own) == (connectivity == "dense")
    for name in own.keys() & {*STILL, "head.weight", "head.bias"}:
        part = tuple(slice(size) for size in own[name].shape)
        assert torch.equal(own[name], whole[name][part]), name
        assert not own[name].requires_grad, name


def test_saved_and_loaded(tmp_path: object) -> None:
    from anytimeify import load

    net = net_of(Blurred(), AuxiliaryBranches((Branch("between", repeats={"stage2": 2}),)))
    net.save(f"{tmp_path}/net")
    again = load(f"{tmp_path}/net")
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in again.named_parameters()} == flags
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


# Networks of torchvision, which draw their weights in their constructors.


@pytest.fixture(scope="module")
def resnet() -> Callable[[], nn.Module]:
    prepare_torchvision()
    torchvision = pytest.importorskip("torchvision")

    def make() -> nn.Module:
        torch.manual_seed(0)
        net: nn.Module = torchvision.models.resnet18(num_classes=5)
        for part in ("conv1", "bn1", "layer1", "layer2.0"):
            net.get_submodule(part).requires_grad_(False)
        return net

    return make


def test_leaves_of_a_partly_frozen_torchvision_network(resnet: Callable[[], nn.Module]) -> None:
    backbone = resnet()
    net = transform(backbone, HierarchicalEnsemble(cuts=("layer1",)), torch.randn(2, 3, 32, 32), verify=False)
    frozen_half = net.get_parameter("layer2.0.conv1.weight")
    assert not frozen_half.requires_grad
    assert torch.equal(*frozen_half.chunk(2))
    for name in ("layer2.1.conv1.weight", "layer3.0.downsample.0.weight", "layer4.1.conv2.weight", "fc.weight"):
        own, other = net.get_parameter(name).detach().chunk(2)
        assert torch.equal(own, backbone.get_parameter(name))
        assert not torch.equal(own, other)
        assert float(other.std()) == pytest.approx(float(own.std()), rel=0.05), name


def test_wider_branches_of_a_torchvision_network_keep_the_gain(resnet: Callable[[], nn.Module]) -> None:
    """He's law of outputs: LeCun's of inputs gives the same where a layer doubles its channels."""
    scheme = AuxiliaryBranches((Branch("layer2", widths={"layer4": 2.0}),))
    net = transform(resnet(), scheme, torch.randn(2, 3, 32, 32), verify=False)
    for name, outputs in (("0.conv1", 1024), ("1.conv2", 1024)):
        weight = net.get_parameter(f"anytime.0.layer4.{name}.weight").detach()
        assert weight.shape[0] == outputs
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / (outputs * 9)), rel=0.03), name
