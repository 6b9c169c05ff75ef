"""Modules that are in eval mode while the backbone trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, AnytimeWarning, HierarchicalEnsemble, NestedChannels, load, transform
from anytimeify.operators.modules import FrozenBatchNorm
from anytimeify.testing import assert_levels_equal_extracts

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
SCHEME = NestedChannels((0.5, 1.0))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.more, self.last = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)
        for norm in (self.norm, self.last):
            norm.get_buffer("running_mean").uniform_()
            norm.get_buffer("running_var").uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.more(self.norm(self.conv(x)).relu())).relu()
        result: Tensor = self.head(self.drop(x.mean((2, 3))))
        return result


class KeepsFrozen(Body):
    """As detectors do: training does not reach the first norm, nor the dropout."""

    def train(self, mode: bool = True) -> KeepsFrozen:
        super().train(mode)
        self.norm.eval()
        self.drop.eval()
        return self


def assert_frozen(net: AnytimeModel, model: nn.Module) -> None:
    """The first norm keeps its statistics, the other goes on; also after `train()`."""
    for _ in range(2):
        first, last = (net.get_buffer(f"{name}.running_mean").clone() for name in ("norm", "last"))
        torch.testing.assert_close(net.train()(X, level=-1), model.train()(X))
        assert torch.equal(net.get_buffer("norm.running_mean"), first)
        assert not torch.equal(net.get_buffer("last.running_mean"), last)
        torch.testing.assert_close(net.get_buffer("last.running_var"), model.get_buffer("last.running_var"))
        net.eval()


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_train_of_its_own_is_respected(evaluating: bool) -> None:
    model = KeepsFrozen().train(not evaluating)
    net = transform(model, SCHEME, X)
    assert net.training is not evaluating
    assert "in eval mode in training too, as in the backbone: drop, norm" in net.captured.notes
    assert_frozen(net, model)
    assert isinstance(net.get_submodule("norm"), FrozenBatchNorm)
    assert isinstance(net.get_submodule("last"), nn.BatchNorm2d)
    assert type(net.extract(0).get_submodule("norm")) is nn.BatchNorm2d
    assert_levels_equal_extracts(net)


def test_modules_that_were_put_into_eval_mode_stay_there(tmp_path: object) -> None:
    model = Body()
    model.norm.eval()
    model.drop.eval()
    net = transform(model, SCHEME, X)
    torch.testing.assert_close(net(X, level=-1), model(X))
    before = net.get_buffer("norm.running_mean").clone()
    net.train()(X)
    assert torch.equal(net.get_buffer("norm.running_mean"), before)
    net.save(f"{tmp_path}/net.safetensors")
    again = load(f"{tmp_path}/net.safetensors").train()
    again(X)
    assert torch.equal(again.get_buffer("norm.running_mean"), before)
    assert model.training
    assert not model.norm.training


def test_frozen_norms_of_an_ensemble_and_of_synchronised_norms() -> None:
    net = transform(KeepsFrozen(), HierarchicalEnsemble(depth=1), X)
    before = net.get_buffer("norm.running_mean").clone()
    net.train()(X)
    assert torch.equal(net.get_buffer("norm.running_mean"), before)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(transform(KeepsFrozen(), SCHEME, X))
    assert isinstance(converted.get_submodule("norm"), FrozenBatchNorm)
    assert isinstance(converted.get_submodule("last"), nn.SyncBatchNorm)


def test_a_dropout_that_is_on_in_eval_mode_is_said_to_follow_the_mode() -> None:
    model = Body().eval()
    model.drop.train()
    with pytest.warns(AnytimeWarning, match="modules in train mode inside a model in eval mode follow .*'drop'"):
        net = transform(model, SCHEME, X)
    assert torch.equal(net(X, level=-1), net(X, level=-1))


class Averaging(Body):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, momentum=None)
        self.drop = nn.Dropout(0.0)


@pytest.mark.parametrize(
    "scheme",
    ["nested-channels{widths=0.5,1}", "nested-channels{widths=0.5,1 norms=shared}", "hierarchical-ensemble{depth=1}"],
)
def test_statistics_that_are_averages_over_all_batches_go_on_being_that(scheme: str, tmp_path: object) -> None:
    model = Averaging()
    model(X * 2)
    net = transform(model, scheme, X)
    net.save(f"{tmp_path}/net.safetensors")
    for one in (net, load(f"{tmp_path}/net.safetensors")):
        twin = Averaging()
        twin.load_state_dict(model.state_dict())
        for scale in (1, 3):
            twin(X * scale)
            one.train()(X * scale, level=net.full)
        assert int(one.get_buffer("norm.num_batches_tracked").flatten()[0]) == 3
        torch.testing.assert_close(one.get_buffer("norm.running_mean")[:8], twin.norm.running_mean)
