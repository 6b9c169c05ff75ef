"""Nested depth: a lower level is the same network with fewer blocks, over the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from anytimeify import AnytimeModel, NestedChannels, NestedDepth, SchemeError, parse_scheme, transform
from anytimeify.losses import JointLoss
from anytimeify.testing import assert_costs_increase, assert_levels_equal_extracts, check
from tests.passes.branches import KINDS, Dense, Projected, Separable, Staged, images
from tests.passes.streams import NETWORKS, Alternating


def net_of(backbone: nn.Module, **options: Any) -> AnytimeModel:
    torch.manual_seed(0)
    return transform(backbone, NestedDepth(**options), (images(),)).eval()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Separable])
def test_a_level_is_the_network_with_fewer_blocks(kind: type[Staged]) -> None:
    backbone = kind(repeats=(4, 4, 4)).eval()
    net = net_of(backbone)
    expected = kind(repeats=(2, 2, 2)).eval()
    expected.load_state_dict(net.extract(0).state_dict())
    torch.testing.assert_close(net(images()).levels[0], expected(images()))
    check(net, backbone, (images(),))
    assert_costs_increase(net)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("layers", "stay"), [(2, 1), (4, 2)])
def test_residual_units_are_left_out_whatever_goes_around_them(kind: type[Alternating], layers: int, stay: int) -> None:
    torch.manual_seed(0)
    backbone = kind(layers).eval()
    net = transform(backbone, NestedDepth(), kind.inputs, loss=JointLoss()).eval()
    expected = kind(stay).eval()
    expected.load_state_dict(net.extract(0).state_dict())
    torch.testing.assert_close(net(*kind.inputs).levels[0], expected(*kind.inputs))
    torch.testing.assert_close(net(*kind.inputs).levels[1], backbone(*kind.inputs))
    assert_levels_equal_extracts(net, kind.inputs)
    assert_costs_increase(net)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_full_level_has_the_gradients_of_the_backbone(kind: type[Alternating]) -> None:
    torch.manual_seed(0)
    backbone = kind(2)
    net = transform(backbone, NestedDepth(), kind.inputs, loss=JointLoss()).train()
    net(*kind.inputs).levels[-1].square().sum().backward()
    backbone.train()(*kind.inputs).square().sum().backward()
    mine = dict(net.named_parameters())
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(mine[name].grad, parameter.grad)


def test_depth_and_width_of_residual_units() -> None:
    torch.manual_seed(0)
    schemes = (NestedDepth(depths=(0.5, 1.0)), NestedChannels(widths=(0.5, 1.0)))
    net = transform(Alternating(2).eval(), schemes, Alternating.inputs, loss=JointLoss()).eval()
    assert_levels_equal_extracts(net, Alternating.inputs)
    assert "layers.1.0.qkv.weight" not in net.extract(0).state_dict()


def test_blocks_that_stay_share_their_weights_and_norms_may_be_their_own() -> None:
    names = {name for name, _ in net_of(Projected(repeats=(4, 4, 4))).named_parameters() if "anytime" in name}
    assert names
    assert all(".bn" in name or name.endswith(("norm.weight", "norm.bias")) for name in names)
    shared = net_of(Projected(repeats=(4, 4, 4)), norms="shared")
    assert not [name for name, _ in shared.named_parameters() if "anytime" in name]


def test_what_lies_before_the_first_gap_is_computed_once() -> None:
    net = net_of(Projected(repeats=(2, 2, 2)), depths=(0.5, 1.0))
    nodes = [node.name for node in net.rewritten.program.graph.nodes]
    assert "level0_stem" not in nodes


def test_dense_layers_that_stay_read_what_is_left() -> None:
    net = net_of(Dense(repeats=(4, 4, 4)), norms="shared")
    small = net.extract(0)
    assert small.get_parameter("head.weight").shape[1] == 8 + 2 * (8 + 16 + 32)


def test_several_depths() -> None:
    net = net_of(Projected(repeats=(4, 4, 4)), depths=(0.25, 0.5, 0.75, 1.0))
    assert [level.name for level in net.levels] == ["depth 0.25", "depth 0.5", "depth 0.75", "depth 1"]
    assert_costs_increase(net)


def test_what_is_refused() -> None:
    with pytest.raises(SchemeError, match="depths="):
        NestedDepth(depths=(0.5,))
    with pytest.raises(SchemeError, match="norms="):
        NestedDepth(norms="none")  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match=r"leaves out the same blocks as 0.5; depths that differ here: 0.5, 1$"):
        net_of(Projected(repeats=(2, 2, 2)), depths=(0.5, 0.6, 1.0))
    with pytest.raises(SchemeError, match="because it has 2 residual units, and no two of one kind"):
        transform(Alternating(1), NestedDepth(), Alternating.inputs)
    with pytest.raises(SchemeError, match="0 blocks that can be left out"):
        transform(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), NestedDepth(), (torch.randn(2, 3),))


def test_schemes_are_written_and_read() -> None:
    scheme = NestedDepth(depths=(0.5, 0.75, 1.0), norms="shared")
    assert parse_scheme(str(scheme)) == scheme
