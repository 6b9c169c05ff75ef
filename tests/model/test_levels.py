"""The levels of a model: what they are, how one of them is run alone, and in which order they stream."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from anytimeify import AnytimeModel, Budget, BudgetError, NestedChannels, Outputs, transform
from anytimeify.passes.options import Options
from anytimeify.runtime.compiled import compiled
from tests.backbones import Residual, images, residual_net
from tests.rounding import close


def test_outputs_are_the_levels_cheapest_first() -> None:
    net, x = residual_net(), images()
    outputs = net(x)
    assert isinstance(outputs, Outputs)
    assert [tuple(prediction.shape) for prediction in outputs.levels] == [(4, 5)] * 3
    assert outputs.members == ()
    for index, level in enumerate(net.levels):
        assert level.index == index
        assert close(net(x, level=index), outputs.levels[index])
        assert close(net(x, level=level), outputs.levels[index])
        assert close(net(x, level=index - 3), outputs.levels[index])
    macs, params = [level.cost.macs for level in net.levels], [level.cost.params for level in net.levels]
    assert macs == sorted(set(macs))
    assert params == sorted(set(params))


def test_the_full_level_is_the_backbone_and_the_backbone_is_untouched() -> None:
    backbone = Residual()
    before = copy.deepcopy(backbone.state_dict())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert backbone.training
    assert net.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    backbone.eval()
    net.eval()
    assert close(net(images(), level=-1), backbone(images()))
    with torch.no_grad():
        net.get_parameter("fc.weight").zero_()
    assert torch.equal(backbone.fc.weight, before["fc.weight"])


def test_one_level_alone_computes_that_level_alone() -> None:
    net = residual_net()
    names = {node.name for node in net.graphs[1].graph.nodes}
    assert any(name.startswith("level0_") for name in names)
    assert not any(name.startswith("level1_") for name in names)
    for index, level in enumerate(net.levels[:-1]):
        assert len(net.graphs[1 + index].graph.nodes) < len(net.graphs[0].graph.nodes)
        assert level.cost.macs < net.levels[-1].cost.macs


@pytest.mark.parametrize("level", [3, -4, 100])
def test_a_level_that_is_not_there_is_refused(level: int) -> None:
    with pytest.raises(BudgetError, match=r"levels are 0 \(width 0.25\), 1 \(width 0.5\), 2 \(width 1\)"):
        residual_net()(images(), level=level)


def test_stream_runs_level_after_level() -> None:
    net, x = residual_net(), images()
    assert not net.resumable
    seen = list(net.stream(x))
    assert tuple(level for level, _ in seen) == net.levels
    for (_, prediction), expected in zip(seen, net(x).levels, strict=True):
        assert close(prediction, expected)


def test_members_and_training_only_levels() -> None:
    made = residual_net()
    rewritten = made.rewritten
    first, second, last = rewritten.levels
    levels = replace(first, training_only=True, member=0), second, replace(last, member=1)
    changed = replace(rewritten, levels=levels)
    net = AnytimeModel(compiled(made.captured, made.axes, made.scheme, changed, Options())).eval()
    outputs = net(images())
    assert [torch.equal(outputs.members[i], outputs.levels[j]) for i, j in ((0, 0), (1, 2))] == [True, True]
    assert [level.index for level, _ in net.stream(images())] == [1, 2]
    assert net.select(Budget(macs=net.levels[1].cost.macs)).index == 1
    with pytest.raises(BudgetError, match=r"the cheapest, level 1 \(width 0.5\)"):
        net.select(Budget(macs=net.levels[0].cost.macs))
    with pytest.raises(BudgetError, match="training only"):
        net.select(Budget(level=0))
    net.extract(0)
