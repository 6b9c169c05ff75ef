"""Hierarchical ensembles: what every level is, that fusing changes nothing, and that a stream wastes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, HierarchicalEnsemble, Outputs, SchemeError, load, transform
from anytimeify.modules import BatchNormCall
from anytimeify.papers import recipe
from anytimeify.passes.replicate import Tree
from anytimeify.testing import Backbone, assert_costs_increase, assert_levels_equal_extracts, backbones, check

SIDE = 8


class Chain(nn.Module):
    """Three stages of convolutions with a residual addition each, depthwise ones among them, and a classifier."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1, self.stage2, self.stage3 = (Stage(width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.point = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.scale * self.point(self.norm(self.deep(x)).relu()))


CUTS = ("stem", "stage1", "stage2")


def net_of(backbone: nn.Module | None = None, **options: Any) -> AnytimeModel:
    torch.manual_seed(0)
    scheme = HierarchicalEnsemble(**{"cuts": CUTS, **options})
    return transform(backbone or Chain(), scheme, images()).eval()


def images(batch: int = 2) -> tuple[Tensor]:
    return (torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)),)


def members(net: AnytimeModel, x: Tensor) -> Tensor:
    outputs: Outputs = net(x)
    return torch.stack(outputs.members)


@pytest.fixture(scope="module")
def net() -> AnytimeModel:
    return net_of()


# The tree.


def test_children_are_neighbours_and_sub_trees_begin_with_the_first_leaf() -> None:
    tree = Tree((2, 2, 2))
    assert [[tree.active(depth, leaves) for depth in range(4)] for leaves in (1, 2, 3, 8)] == [
        [1, 1, 1, 1],
        [1, 1, 1, 2],
        [1, 1, 2, 3],
        [1, 2, 4, 8],
    ]
    assert [tree.parent(leaf, 3, 1) for leaf in range(8)] == [0] * 4 + [1] * 4
    assert Tree((3, 2)).sub_trees() == (1, 2, 6)


# Levels.


def test_everything_that_holds_for_any_scheme_holds() -> None:
    backbone = Chain()
    check(net_of(backbone), backbone, images())


def test_levels_are_averages_of_the_first_leaves(net: AnytimeModel) -> None:
    (x,) = images()
    leaves, outputs = members(net, x), net(x)
    assert len(outputs.levels) == 4
    for level, count in enumerate((1, 2, 4, 8)):
        torch.testing.assert_close(outputs.levels[level], leaves[:count].mean(0))
    assert [level.name for level in net.levels] == ["1 leaf", "2 leaves", "4 leaves", "8 leaves"]


def test_a_level_for_every_number_of_leaves() -> None:
    net = net_of(sizes="all")
    (x,) = images()
    leaves, outputs = members(net, x), net(x)
    assert len(outputs.levels) == 8
    torch.testing.assert_close(outputs.levels[2], leaves[:3].mean(0))
    assert_levels_equal_extracts(net)
    assert_costs_increase(net)


def test_fresh_leaves_differ_and_copies_do_not() -> None:
    (x,) = images()
    fresh, copies = members(net_of(), x), members(net_of(init="copy"), x)
    assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(fresh) for other in fresh[:i])
    torch.testing.assert_close(copies, copies[:1].expand_as(copies))


def test_fresh_parameters_come_from_the_initialisers_of_the_backbone() -> None:
    class Odd(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.weight, 3.0)
            nn.init.constant_(self.bias, -1.0)

    odd = Odd(6, 6)
    with torch.no_grad():
        odd.weight.normal_()
    backbone = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), odd)
    net = transform(backbone, HierarchicalEnsemble(cuts=("0",)), (torch.randn(2, 4),))
    weight = net.get_parameter("2.weight")
    torch.testing.assert_close(weight[:6], odd.weight)
    assert (weight[6:] == 3.0).all()
    assert (net.get_parameter("2.bias")[6:] == -1.0).all()


class Demanding(nn.Linear):
    """An initialiser that asks for more than anybody here can know."""

    def reset_parameters(self, gain: float | None = None, *, seed: int = 0) -> None:
        super().reset_parameters()


class Curious(nn.Module):
    """A layer whose initialiser needs an argument."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(size, size))
        self.reset_parameters(0.1)

    def reset_parameters(self, deviation: float) -> None:
        nn.init.normal_(self.matrix, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Lost(nn.Linear):
    """An initialiser that reads what is not there any more."""

    lost = False

    def reset_parameters(self) -> None:
        if self.lost:
            raise FileNotFoundError("weights.pth")
        super().reset_parameters()


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *layers, nn.Linear(6, 3))


def test_initialisers_that_need_arguments_are_left_out() -> None:
    backbone = chain(Curious(6), Demanding(6, 6))
    net = transform(backbone, HierarchicalEnsemble(cuts=("0",)), (torch.randn(2, 4),))
    matrix = net.get_parameter("2.matrix")
    assert not torch.equal(matrix[:6], matrix[6:])
    assert matrix[6:].std() < 0.3


def test_initialisers_that_fail_are_named() -> None:
    broken = Lost(6, 6)
    broken.lost = True
    with pytest.raises(SchemeError, match=r"reset_parameters of '2' \(Lost\) fails .*weights.pth. Use init='copy'"):
        transform(chain(broken), HierarchicalEnsemble(cuts=("0",)), (torch.randn(2, 4),))
    transform(chain(broken), HierarchicalEnsemble(cuts=("0",), init="copy"), (torch.randn(2, 4),))


def test_models_that_cannot_be_copied_are_refused() -> None:
    backbone = chain()
    backbone.derived = backbone.get_parameter("0.weight") * 2  # no leaf of autograd
    with pytest.raises(SchemeError, match="cannot be copied"):
        transform(backbone, HierarchicalEnsemble(cuts=("0",)), (torch.randn(2, 4),))


def test_whole_numbers_have_no_average() -> None:
    class Class(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(SchemeError, match=r"of type torch.int64, of which no average can be taken"):
        net_of(Class())


def part(net: AnytimeModel, name: str, member: int, count: int) -> Tensor:
    return net.get_parameter(name).detach().chunk(count)[member]


def test_a_member_reaches_the_leaves_below_it_and_no_others(net: AnytimeModel) -> None:
    (x,) = images()
    before = members(net, x)
    for name, member, count in (("head.weight", 5, 8), ("stage3.point.weight", 5, 8), ("stage1.point.weight", 1, 2)):
        weight = part(net, name, member, count)
        kept = weight.clone()
        weight.mul_(1.5)
        changed = [not torch.equal(one, other) for one, other in zip(members(net, x), before, strict=True)]
        below = 8 // count
        assert changed == [leaf // below == member for leaf in range(8)], name
        weight.copy_(kept)
    stem = net.get_parameter("stem.0.weight")
    with torch.no_grad():
        stem.mul_(1.5)
        assert not any(torch.equal(one, other) for one, other in zip(members(net, x), before, strict=True))
        stem.div_(1.5)


def test_swapping_siblings_leaves_the_full_level_unchanged(net: AnytimeModel) -> None:
    (x,) = images()
    before = net(x)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, tensor in net.state_dict().items():
        if name.startswith(("stage3", "head")) and not name.endswith("tracked"):
            parts = list(tensor.chunk(8))
            parts[6], parts[7] = parts[7], parts[6]
            tensor.copy_(torch.cat(parts))
    after = net(x)
    torch.testing.assert_close(after.levels[-1], before.levels[-1])
    torch.testing.assert_close(after.members[6], before.members[7])
    net.load_state_dict(state)


# Fused and unrolled.


def differences(backbone: nn.Module, inputs: tuple[Tensor, ...], scheme: HierarchicalEnsemble) -> None:
    """Outputs and gradients of the fused net against those of the unrolled one with the same parameters."""
    fused = transform(backbone, scheme, inputs).double()
    apart = transform(backbone, HierarchicalEnsemble(depth=scheme.depth, cuts=scheme.cuts, fuse=False), inputs).double()
    apart.load_state_dict(fused.state_dict())
    gradients = []
    for net in (fused.eval(), apart.eval()):
        outputs: Outputs = net(*(x.double() for x in inputs))
        weights = torch.Generator().manual_seed(0)
        results = (*outputs.levels, *outputs.members)
        torch.stack([(y * torch.randn(y.shape, generator=weights)).sum() for y in results]).sum().backward()
        gradients.append((results, {name: parameter.grad for name, parameter in net.named_parameters()}))
    (one, mine), (other, theirs) = gradients
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_fusing_changes_nothing() -> None:
    differences(Chain(), images(), HierarchicalEnsemble(cuts=CUTS))


def test_siblings_are_one_operation(net: AnytimeModel) -> None:
    point = net.get_submodule("stage3.point")
    assert isinstance(point, nn.Conv2d)
    assert (point.groups, point.out_channels) == (8, 64)
    assert net.report().notes == ()
    calls = [len(graph.graph.nodes) for graph in (net.graphs[0], net_of(fuse=False).graphs[0])]
    assert 2 * calls[0] < calls[1]


few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@few
@given(backbones(3, 2))
def test_fusing_changes_nothing_in_generated_backbones(backbone: Backbone) -> None:
    model, inputs = backbone.build().eval(), backbone.example_inputs()
    try:
        differences(model, inputs, HierarchicalEnsemble(depth=1))
    except SchemeError as error:
        if "too few" not in str(error):  # places to cut it at
            raise
        reject()


def test_training_updates_the_statistics_of_every_member_once() -> None:
    fused, apart = net_of().train(), net_of(fuse=False).train()
    apart.load_state_dict(fused.state_dict())
    fused(*images(4)), apart(*images(4))
    for name, statistics in fused.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(statistics, apart.get_buffer(name))


# Streams.


@pytest.mark.parametrize("sizes", ["trees", "all"])
def test_a_stream_gives_every_level_and_wastes_nothing(sizes: str) -> None:
    net = net_of(sizes=sizes)
    assert net.resumable
    (x,) = images()
    for (level, prediction), expected in zip(net.stream(x), net(x).levels, strict=True):
        torch.testing.assert_close(prediction, expected, msg=level.name)
    with FlopCounterMode(display=False) as streamed:
        list(net.stream(x))
    assert streamed.get_total_flops() <= 1.02 * 2 * len(x) * net.levels[-1].cost.macs


def test_a_stream_may_be_left(net: AnytimeModel) -> None:
    (x,) = images()
    with FlopCounterMode(display=False) as counter:
        level, _ = next(iter(net.stream(x)))
    assert counter.get_total_flops() == 2 * len(x) * level.cost.macs


# Cuts.


def test_many_branches_behind_one_cut(net: AnytimeModel) -> None:
    branches = net_of(cuts=(), splits=(("stage2", 5),))
    assert [level.name for level in branches.levels] == ["1 leaf", "5 leaves"]
    assert len(branches(*images()).members) == 5


def test_independent_networks() -> None:
    net = net_of(cuts=(), splits=(("input", 3),))
    assert net.levels[1].cost.macs == 3 * net.levels[0].cost.macs
    assert net.levels[1].cost.params == 3 * net.levels[0].cost.params


def test_cuts_are_chosen_so_that_parts_cost_about_the_same() -> None:
    net = transform(Chain(16), HierarchicalEnsemble(depth=2), images())
    one, two, four = (level.cost.macs for level in net.levels)
    assert 1.2 < two / one < 1.6
    assert 1.8 < four / one < 2.8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cuts": ("stage4",)}, "there is no layer 'stage4'; did you mean 'stage"),
        ({"cuts": ("stage1.norm",)}, "data flows around 'stage1.norm'"),
        ({"cuts": ("stage2", "stage1")}, "'stage1' does not come after 'stage2'"),
        ({"cuts": ("head",)}, "has parameters of its own"),
        ({"cuts": (), "depth": 12}, "too few"),
        ({"depth": 0}, "depth=0"),
        ({"cuts": (), "splits": (("stage1", 1),)}, "a number of 2 or more"),
        ({"cuts": (), "splits": 5}, "splits: (5,) is not a pair"),
        ({"cuts": (), "splits": ((),)}, "is not a pair"),
        ({"cuts": ("",)}, "there is no layer ''"),
        ({"cuts": (None,)}, "None is not the name of a layer"),
        ({"cuts": ("stage1",), "splits": (("stage1", 2),)}, "give one of them"),
        ({"init": "zeros"}, "init='zeros': expected fresh or copy"),
        ({"fuse": 3}, "fuse=3"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemeError, match=re.escape(says)):
        net_of(**options)


# What comes and goes.


def test_checkpoints_of_the_backbone_load_into_the_first_leaf() -> None:
    net, other = net_of(), Chain().eval()
    leaves = members(net, *images())
    net.load_state_dict(other.state_dict())
    (x,) = images()
    torch.testing.assert_close(net(x).levels[0], other(x))
    assert not torch.equal(members(net, x)[-1], leaves[-1])  # the trunk is shared
    torch.testing.assert_close(part(net, "head.weight", 3, 8), part(net_of(), "head.weight", 3, 8))


def test_saved_and_loaded(tmp_path: Path) -> None:
    net = net_of(sizes="all", splits=(("stem", 2), ("stage2", 3)), cuts=())
    net.save(tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors")
    (x,) = images()
    for found, expected in zip(loaded(x), net(x), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert str(loaded.scheme) == str(net.scheme)


def test_layers_with_numbers_for_names_are_saved_and_loaded(tmp_path: Path) -> None:
    scheme = HierarchicalEnsemble(splits=(("0", 2), ("2", 3)))
    net = transform(chain(nn.Linear(6, 6)), scheme, (torch.randn(2, 4),))
    net.save(tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").scheme == scheme


def test_extracts_have_the_backbones_names_and_shapes(net: AnytimeModel) -> None:
    state = net.extract(0).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in Chain().state_dict().items()
    }


# The paper.


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        (
            "hne/resnet50-cifar",
            (50.80, 65.66, 107.08, 201.74, 401.99),
            (0.456, 0.695, 1.335, 2.656, 5.311),
        ),
    ],
)
def test_costs_of_the_paper(name: str, macs: tuple[float, ...], params: tuple[float, ...]) -> None:
    net = recipe(name).build(verify=False)
    assert [round(level.cost.macs / 1e6, 2) for level in net.levels] == list(macs)
    assert [round(level.cost.params / 1e6, 3) for level in net.levels] == list(params)


def test_blocks_of_equal_cost_follow_equation_8() -> None:
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(5)]
    backbone = nn.Sequential(*blocks)
    cuts = tuple(map(str, range(4)))
    net = transform(backbone, HierarchicalEnsemble(cuts=cuts), (torch.randn(2, 16),))
    independent = 16 * net.levels[0].cost.macs
    assert net.levels[-1].cost.macs / independent == pytest.approx(31 / 80)


class Recurrent(nn.Module):
    """A layer on every step, an LSTM whose state begins with zeros, and a classifier of each sample's chosen step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        step = (x[:, 0, 0] > 0).long()
        result: Tensor = self.head(self.rnn(x)[0][torch.arange(x.shape[0]), step])
        return result


def test_states_that_begin_with_zeros_are_no_way_around_a_cut() -> None:
    inputs = (torch.randn(3, 5, 4),)
    backbone = Recurrent().eval()
    net = transform(backbone, HierarchicalEnsemble(cuts=("embed",)), inputs).eval()
    torch.testing.assert_close(net(*inputs).levels[0], backbone(*inputs))
    for batch in (1, 4):
        given = (torch.randn(batch, 5, 4),)
        for leaf, expected in enumerate(net(*given).members):
            own = {
                name: tensor.chunk(2)[leaf] if name.startswith(("rnn", "head")) else tensor
                for name, tensor in net.state_dict().items()
            }
            alone = Recurrent().eval()
            alone.load_state_dict(own)
            torch.testing.assert_close(expected, alone(*given))


@pytest.mark.parametrize("fuse", [True, False])
def test_calibrate_estimates_the_statistics_of_every_member(fuse: bool) -> None:
    net, trained = net_of(fuse=fuse), net_of(fuse=fuse)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d | BatchNormCall):
            module.momentum = 1.0
    trained.load_state_dict(net.state_dict())
    trained.train()(*images(6))
    net.calibrate([images(6)])
    for name, statistics in trained.named_buffers():
        if "running" in name:
            torch.testing.assert_close(net.get_buffer(name), statistics, msg=name)
