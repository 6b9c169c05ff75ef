"""Pooled heads of every shape of prediction, and forks that several tensors pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, AuxiliaryBranches, Branch, SchemeError, transform
from anytimeify.losses import JointLoss
from anytimeify.testing import assert_costs_increase, assert_levels_equal_extracts
from tests.passes.streams import Alternating, Conditioned, SkipConnected


def net_of(backbone: nn.Module, inputs: tuple[Tensor, ...], branches: int | Branch = 2) -> AnytimeModel:
    torch.manual_seed(0)
    given = branches if isinstance(branches, int) else (branches,)
    return transform(backbone.eval(), AuxiliaryBranches(given), inputs, loss=JointLoss()).eval()


def convolutions(rank: int, stride: int = 1) -> nn.Sequential:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    return nn.Sequential(kind(3, 8, 3, stride, 1), nn.ReLU(), kind(8, 8, 3, 1, 1), nn.ReLU(), kind(8, 5, 1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dense_predictions_have_a_layer_for_every_position(rank: int) -> None:
    x = torch.randn(2, 3, *[8] * rank)
    backbone = convolutions(rank)
    net = net_of(backbone, (x,), Branch("1", head="pool"))
    weight, bias = (net.get_parameter(f"anytime.0.pooled.{name}") for name in ("weight", "bias"))
    features = backbone[:2](x)
    expected = torch.einsum("bc...,oc->bo...", features, weight.flatten(1)) + bias.view(-1, *[1] * rank)
    torch.testing.assert_close(net(x).levels[0], expected)
    assert_levels_equal_extracts(net, (x,))


def test_dense_predictions_are_interpolated_to_their_size() -> None:
    x = torch.randn(2, 3, 8, 8)
    backbone = nn.Sequential(*convolutions(2, stride=2), nn.Upsample(scale_factor=2.0, mode="nearest"))
    net = net_of(backbone, (x,), Branch("1", head="pool"))
    layer = nn.Conv2d(8, 5, 1)
    layer.load_state_dict({k: net.get_parameter(f"anytime.0.pooled.{k}") for k in ("weight", "bias")})
    expected = nn.functional.interpolate(layer(backbone[:2](x)), (8, 8), mode="bilinear")
    torch.testing.assert_close(net(x).levels[0], expected)
    assert_levels_equal_extracts(net, (x,))


def test_a_row_of_tokens_is_a_grid_of_the_predictions_proportions() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 32)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            patches: Tensor = self.out(self.mix(tokens).relu()).view(len(x), 2, 4, 2, 4, 4)
            return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 2, 8, 16)

    x = torch.randn(2, 3, 8, 16)
    backbone = Patches()
    net = net_of(backbone, (x,), Branch("mix", head="pool"))
    layer = nn.Conv2d(8, 2, 1)
    layer.load_state_dict({k: net.get_parameter(f"anytime.0.pooled.{k}") for k in ("weight", "bias")})
    tokens = backbone.mix(backbone.embed(x).flatten(2).transpose(1, 2))
    expected = nn.functional.interpolate(layer(tokens.transpose(1, 2).unflatten(2, (2, 4))), (8, 16), mode="bilinear")
    torch.testing.assert_close(net(x).levels[0], expected)


def test_sequences_have_a_linear_layer_for_every_position() -> None:
    (tokens,) = Alternating.inputs
    backbone = Alternating(2)
    net = net_of(backbone, (tokens,), 1)
    assert net(tokens).levels[0].shape == backbone(tokens).shape
    layers = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    pooled = net_of(layers, (tokens,), Branch("1", head="pool"))
    assert pooled.get_parameter("anytime.0.pooled.weight").shape == (4, 8)
    expected = nn.functional.linear(
        layers[:2](tokens), *(pooled.get_parameter(f"anytime.0.pooled.{name}") for name in ("weight", "bias"))
    )
    torch.testing.assert_close(pooled(tokens).levels[0], expected)
    assert_levels_equal_extracts(pooled, (tokens,))


def test_vectors_of_any_shape_have_a_linear_layer() -> None:
    backbone = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 12), nn.Unflatten(1, (4, 3)))
    net = net_of(backbone, (torch.randn(2, 6),), Branch("0", head="pool"))
    assert net(torch.randn(2, 6)).levels[0].shape == (2, 4, 3)
    assert net.get_parameter("anytime.0.pooled.weight").shape == (12, 32)


@pytest.mark.parametrize("kind", [SkipConnected, Conditioned, Alternating])
def test_branches_fork_where_several_tensors_pass(kind: type[SkipConnected]) -> None:
    backbone = kind(4)
    net = net_of(backbone, kind.inputs)
    assert len(net.levels) == 3
    assert not any(name.startswith("anytime.0.pooled") for name, _ in net.named_parameters())
    torch.testing.assert_close(net(*kind.inputs).levels[-1], backbone(*kind.inputs))
    assert_levels_equal_extracts(net, kind.inputs)
    assert_costs_increase(net)


def test_a_pooled_head_that_nobody_asked_for_is_told() -> None:
    x = torch.randn(2, 3, 8, 8)
    net = net_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (x,), 1)
    (said,) = [note for note in net.rewritten.notes if "pooled head" in note]
    assert said.startswith("level 0: a pooled head at ")
    assert said in str(net.report())


def test_refused_where_there_is_no_exit() -> None:
    with pytest.raises(SchemeError, match="too small for exits"):
        net_of(nn.Linear(3, 2), (torch.randn(2, 3),), 1)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(SchemeError, match=r"pooled heads only at 1 place; use fewer branches"):
        net_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (x,), 2)
