"""The shipped checks find what they are for, and say where it is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from anytimeify.compiler import transform
from anytimeify.ir import Cost, Level
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.model import AnytimeModel
from anytimeify.testing import (
    Backbone,
    Stage,
    assert_costs_increase,
    assert_exactly_thin,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    assert_round_trip,
    assert_sites_nested,
    blocks,
    check,
    entries,
)

BACKBONE = Backbone((Stage(entries.Conv(), 8, (blocks.Basic(),)),), entries.PoolHead())


@pytest.fixture
def made() -> tuple[AnytimeModel, nn.Module]:
    model = BACKBONE.build().eval()
    return transform(model, NestedChannels(widths=(0.5, 1.0)), BACKBONE.example_inputs()), model


def test_all_is_well(made: tuple[AnytimeModel, nn.Module]) -> None:
    net, model = made
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.train()
    check(net, model)
    assert_gradients_add_up(net, training=True)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_other_weights(made: tuple[AnytimeModel, nn.Module]) -> None:
    net, model = made
    with torch.no_grad():
        net.get_parameter("stage0.entry.0.weight").mul_(1.01)
    with pytest.raises(
        AssertionError,
        match=r"the full level, run with the others, .* differs by .* not the backbone's: stage0\.entry\.0\.weight$",
    ):
        assert_full_equals_backbone(net, model)


def test_weights_that_do_not_matter_must_be_the_same_too(made: tuple[AnytimeModel, nn.Module]) -> None:
    net, model = made
    with torch.no_grad():
        net.get_parameter("head.1.bias").add_(1e-9)
        dict(net.named_buffers())["stage0.entry.1.num_batches_tracked"].add_(1)
    with pytest.raises(AssertionError, match=r"stage0\.entry\.1\.num_batches_tracked is not the same, bit for bit"):
        assert_full_equals_backbone(net, model)


def test_wrong_extract(made: tuple[AnytimeModel, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = made
    full = net.extract(-1)
    monkeypatch.setattr(AnytimeModel, "extract", lambda self, level: full)
    with pytest.raises(AssertionError, match=r"level 0 \(width 0\.5\), its extract against joint: differs by"):
        assert_levels_equal_extracts(net)


def test_costs_out_of_order(made: tuple[AnytimeModel, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (Level(0, "a", Cost(5, 1, 1)), Level(1, "b", Cost(5, 2, 1)))
    monkeypatch.setattr(AnytimeModel, "levels", levels)
    with pytest.raises(AssertionError, match=r"level 0 \(a\) costs 5 .* level 1 \(b\) 5: costs must increase"):
        assert_costs_increase(made[0])


def test_levels_that_are_not_nested(made: tuple[AnytimeModel, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = made

    def last_channels(self: AnytimeModel, level: Level) -> nn.Module:
        layer = nn.Module()
        weight = self.get_parameter("stage0.entry.0.weight")
        layer.stage0 = nn.Module()
        layer.stage0.entry = nn.ModuleList([nn.Module()])
        layer.stage0.entry[0].weight = nn.Parameter((weight[-4:] if level.index == 0 else weight[:6]).detach().clone())
        return layer

    monkeypatch.setattr(AnytimeModel, "extract", last_channels)
    with pytest.raises(AssertionError, match=r"the first reads stage0\.entry\.0\.weight at \[\(6, 0, 0, 0\)"):
        assert_sites_nested(net)


def test_not_thin(made: tuple[AnytimeModel, nn.Module]) -> None:
    net, model = made
    thin = BACKBONE.thin(0.5, model).eval()
    assert_exactly_thin(net, 0, thin)
    with torch.no_grad():
        next(thin.parameters()).neg_()
    with pytest.raises(AssertionError, match=r"level 0, extracted, against the thin network: differs"):
        assert_exactly_thin(net, 0, thin)
    with pytest.raises(AssertionError, match=r"stage0\.entry\.0\.weight has shape \(4, 3, 3, 3\), not \(2, 3, 3, 3\)"):
        assert_exactly_thin(net, 0, BACKBONE.thin(0.25, model))


def test_loaded_model_differs(
    made: tuple[AnytimeModel, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last bit of one number, by the sign of a zero, or by its outputs alone."""
    net, _ = made
    bias = net.get_parameter("head.1.bias")
    with torch.no_grad():
        bias[0] = 0
        last_bit, sign = bias.clone(), bias.clone()
        last_bit[1] = bias[1].nextafter(torch.tensor(torch.inf))
        sign[0] = -0.0
    for change in (last_bit, sign):
        other = copy.deepcopy(net)
        other.get_parameter("head.1.bias").data = change
        monkeypatch.setattr("anytimeify.testing.checks.load", lambda path, other=other: other)
        with pytest.raises(AssertionError, match=r"head\.1\.bias is not the same, bit for bit"):
            assert_round_trip(net, tmp_path)
    other = copy.deepcopy(net)
    other.register_forward_hook(lambda module, args, out: out._replace(levels=tuple(1.01 * x for x in out.levels)))
    monkeypatch.setattr("anytimeify.testing.checks.load", lambda path: other)
    with pytest.raises(AssertionError, match=r"level 0 .*, loaded against saved: differs by"):
        assert_round_trip(net, tmp_path)


def test_gradients_that_do_not_add_up(made: tuple[AnytimeModel, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = made
    forward = AnytimeModel.forward

    def doubled(self: AnytimeModel, *args: object, level: object = None) -> object:
        result = forward(self, *args, level=level)  # type: ignore[arg-type]  # what the test hands on
        return result if level is None else 2 * result

    monkeypatch.setattr(AnytimeModel, "forward", doubled)
    with pytest.raises(AssertionError, match=r"the gradient of .*, joint against added up"):
        assert_gradients_add_up(net)
