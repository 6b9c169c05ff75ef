"""Fields of hierarchical ensembles: where they are cut, what leaves begin with, what is refused, stored and counted."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import HierarchicalEnsemble, SchemeError, load, transform
from anytimeify.papers import recipe
from tests.passes.ensembles import Chain, chain, images, members, net_of, part
from tests.rounding import close


def test_cuts_are_chosen_so_that_parts_cost_about_the_same() -> None:
    net = transform(Chain(16), HierarchicalEnsemble(depth=2), images())
    one, two, four = (level.cost.macs for level in net.levels)
    assert 1.2 < two / one < 1.6
    assert 1.8 < four / one < 2.8


def test_many_branches_behind_one_cut() -> None:
    branches = net_of(cuts=(), splits=(("stage2", 5),))
    assert [level.name for level in branches.levels] == ["1 leaf", "5 leaves"]
    assert len(branches(*images()).members) == 5


def test_independent_networks() -> None:
    net = net_of(cuts=(), splits=(("input", 3),))
    assert net.levels[1].cost.macs == 3 * net.levels[0].cost.macs
    assert net.levels[1].cost.params == 3 * net.levels[0].cost.params


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cuts": ("stage4",)}, "there is no layer 'stage4'; did you mean 'stage"),
        ({"cuts": ("stage1.norm",)}, "data flows around 'stage1.norm'"),
        ({"cuts": ("stage2", "stage1")}, "'stage1' does not come after 'stage2'"),
        ({"cuts": ("head",)}, "has parameters of its own"),
        ({"cuts": (), "depth": 8}, "too few"),
        ({"cuts": (), "depth": 12}, "more than 256 leaves"),
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


def test_models_that_cannot_be_copied_start_afresh_too() -> None:
    """What `deepcopy` does not take, a tensor that was computed or a lock, is no obstacle; and nothing of the backbone
    is written to."""
    backbone: Any = chain()
    backbone.derived, backbone.lock = backbone.get_parameter("0.weight") * 2, threading.Lock()
    backbone.others = [backbone.get_submodule("0")]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    net = transform(backbone, HierarchicalEnsemble(cuts=("0",)), (torch.randn(2, 4),))
    stacks = {name: net.get_parameter(name) for name, _ in backbone.named_parameters()}
    grown = [name for name, stack in stacks.items() if stack.shape != before[name].shape]
    assert grown
    assert all(not stacks[name][: len(before[name])].equal(stacks[name][len(before[name]) :]) for name in grown)
    assert all(tensor.equal(before[name]) for name, tensor in backbone.state_dict().items())


def test_whole_numbers_have_no_average() -> None:
    class Class(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(SchemeError, match=r"of type torch.int64, of which no average can be taken"):
        net_of(Class())


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
        assert all(close(one, other) for one, other in zip(found, expected, strict=True))
    assert str(loaded.scheme) == str(net.scheme)


def test_layers_with_numbers_for_names_are_saved_and_loaded(tmp_path: Path) -> None:
    scheme = HierarchicalEnsemble(splits=(("0", 2), ("2", 3)))
    net = transform(chain(nn.Linear(6, 6)), scheme, (torch.randn(2, 4),))
    net.save(tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").scheme == scheme


def test_extracts_have_the_backbones_names_and_shapes() -> None:
    state = net_of().extract(0).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in Chain().state_dict().items()
    }


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
