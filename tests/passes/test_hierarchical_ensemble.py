"""Hierarchical ensembles: what every level is, that fusing changes nothing, and that a stream wastes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, HierarchicalEnsemble, SchemeError, transform
from anytimeify.operators.modules import BatchNormCall
from anytimeify.passes.rewrites.replicate import Tree
from anytimeify.testing import Backbone, assert_costs_increase, assert_levels_equal_extracts, backbones, check
from tests.examples import examples
from tests.passes.ensembles import CUTS, Chain, differences, images, members, net_of, part


@pytest.fixture(scope="module")
def net() -> AnytimeModel:
    return net_of()


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


def test_swapping_replicas_leaves_the_full_level_unchanged(net: AnytimeModel) -> None:
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


def test_fusing_changes_nothing() -> None:
    differences(Chain(), images(), HierarchicalEnsemble(cuts=CUTS))


def test_replicas_are_one_operation(net: AnytimeModel) -> None:
    point = net.get_submodule("stage3.point")
    assert isinstance(point, nn.Conv2d)
    assert (point.groups, point.out_channels) == (8, 64)
    assert net.report().notes == ()
    calls = [len(graph.graph.nodes) for graph in (net.graphs[0], net_of(fuse=False).graphs[0])]
    assert 2 * calls[0] < calls[1]


few = examples(15)


@pytest.mark.slow
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
