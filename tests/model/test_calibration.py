"""Running statistics, estimated anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anytimeify import NestedChannels
from tests.backbones import images, residual_net


def test_calibrate_gives_the_mean_of_the_batch_statistics() -> None:
    net = residual_net()
    net.get_submodule("drop").train()
    batches = [images(16, seed) for seed in range(4)]
    stem = [nn.functional.conv2d(x, net.get_parameter("stem.weight"), padding=1) for x in batches]
    net.calibrate(batches)
    mean = torch.stack([y.mean((0, 2, 3)) for y in stem]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in stem]).mean(0)
    torch.testing.assert_close(net.get_buffer("bn1.running_mean"), mean)
    torch.testing.assert_close(net.get_buffer("bn1.running_var"), var)
    torch.testing.assert_close(net.get_buffer("anytime.0.bn1.running_mean"), mean[:2])
    assert net.get_buffer("bn1.num_batches_tracked") == 4
    assert net.get_submodule("bn1").momentum == 0.1
    assert not net.training
    assert net.get_submodule("drop").training


def test_calibrate_takes_batches_of_a_data_loader() -> None:
    net = residual_net()
    other = copy.deepcopy(net)
    net.calibrate([images(16)])
    dataset = torch.utils.data.TensorDataset(images(16), torch.zeros(16))
    other.calibrate(torch.utils.data.DataLoader(dataset, batch_size=16))
    for name, tensor in net.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(other.state_dict()[name], tensor)


def test_calibrate_of_shared_norms_estimates_the_full_level() -> None:
    net = residual_net(NestedChannels((0.5, 1.0), norms="shared"))
    private = residual_net(NestedChannels((0.5, 1.0)))
    private.load_state_dict(net.state_dict(), strict=False)
    for model in (net, private):
        model.calibrate([images(16, 1), images(16, 2)])
    torch.testing.assert_close(net.get_buffer("bn2.running_var"), private.get_buffer("bn2.running_var"))


def test_calibrate_without_batches_changes_nothing() -> None:
    net = residual_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="no batches"):
        net.calibrate([])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
