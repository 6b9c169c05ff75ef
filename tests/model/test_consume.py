"""Whose memory a result is in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AuxiliaryBranches, HierarchicalEnsemble, NestedChannels, transform
from anytimeify.passes.scheme import Scheme
from anytimeify.runtime.model import AnytimeModel
from tests.backbones import Residual, images

SCHEMES = [
    NestedChannels((0.5, 1.0)),
    NestedChannels((0.5, 1.0), connectivity="triangular"),
    NestedChannels((0.5, 1.0), order="l1"),
    HierarchicalEnsemble(depth=1),
    AuxiliaryBranches(branches=1),
]


def memory(module: nn.Module) -> set[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("verify", [True, False])
def test_a_model_is_left_as_it_is(scheme: Scheme, verify: bool) -> None:
    backbone = Residual()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    frozen = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    net = transform(backbone, scheme, images(), verify=verify)
    assert not memory(net) & memory(backbone)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert frozen == {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}


def test_a_model_that_is_consumed_shares_its_memory() -> None:
    backbone = Residual().eval()
    expected = backbone(images())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images(), consume=True)
    assert memory(backbone) <= memory(net)
    torch.testing.assert_close(net(images(), level=-1), expected)
    names = dict(net.named_parameters())
    assert all(names[name] is not parameter for name, parameter in backbone.named_parameters())
    with torch.no_grad():
        names["fc.weight"].zero_()
    assert not backbone.fc.weight.any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_consumed_model_gives_the_same_result(scheme: Scheme) -> None:
    def made(consume: bool) -> AnytimeModel:
        torch.manual_seed(0)
        return transform(Residual().eval(), scheme, images(), consume=consume)

    one, other = made(False), made(True)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


class Overlapping(nn.Module):
    """Two layers in one memory, tied ones, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(12, 6)
        self.one, self.other, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.one.weight, self.other.weight = nn.Parameter(whole[:6]), nn.Parameter(whole[6:])
        self.last.weight = self.one.weight
        self.wide, self.thin = nn.Linear(6, 8), nn.Linear(8, 6)
        self.scale = torch.full((6,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.thin(self.wide(self.last(self.other(self.one(x).relu()))).relu()) * self.scale  # type: ignore[no-any-return]  # a tensor


def test_what_lies_in_one_memory_is_copied() -> None:
    backbone = Overlapping()
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(2, 6), consume=True)
    shared = memory(net) & memory(backbone)
    assert backbone.one.weight.untyped_storage().data_ptr() not in shared
    assert backbone.one.bias.untyped_storage().data_ptr() in shared
    assert backbone.scale.untyped_storage().data_ptr() not in memory(net)
    tensors = net.tensors()
    assert tensors["one.weight"] is tensors["last.weight"]
