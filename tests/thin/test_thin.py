"""Exactly thin: a level is the network that its own constructor builds at that width, with the prefix of every weight.

The thin networks and the copying come from tests/thin/networks.py, which knows the architectures and nothing of the
compiler.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from anytimeify.compiler import transform
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.model import AnytimeModel
from anytimeify.testing import assert_exactly_thin, assert_full_equals_backbone, check, randomise
from anytimeify.verification import difference
from tests.rounding import close
from tests.thin.networks import NETWORKS, Network, copy_prefix

TOLERANCE = 1e-5
HALF = NestedChannels(widths=(0.5, 1.0))
every_network = pytest.mark.parametrize("network", NETWORKS, ids=str)


@dataclass(frozen=True)
class Converted:
    full: nn.Module
    before: dict[str, Tensor]  # the backbone's state before it was transformed
    net: AnytimeModel


@functools.cache
def converted(network: Network) -> Converted:
    full = randomise(network.build(1)).eval()
    before = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    return Converted(full, before, transform(full, HALF, example_inputs=network.inputs()))


def thin_copy(network: Network, full: nn.Module) -> nn.Module:
    thin = network.build(2).eval()
    copy_prefix(full, thin, network.positions)
    return thin


@every_network
def test_half_level_is_the_half_width_constructor(network: Network) -> None:
    it = converted(network)
    assert_exactly_thin(it.net, 0, thin_copy(network, it.full), network.inputs(), tolerance=TOLERANCE)


@every_network
def test_invariants(network: Network) -> None:
    it = converted(network)
    check(it.net, it.full, network.inputs(), tolerance=TOLERANCE)


@every_network
def test_backbone_is_untouched(network: Network) -> None:
    it = converted(network)
    after = it.full.state_dict()
    assert after.keys() == it.before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in it.before.items())
    assert not it.full.training
    untouched = randomise(network.build(1)).eval()
    inputs = network.inputs()
    with torch.no_grad():
        assert close(it.full(*inputs), untouched(*inputs))
    assert [type(module) for module in it.full.modules()] == [type(module) for module in untouched.modules()]
    own = {tensor.data_ptr() for tensor in it.full.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in it.net.state_dict().values()), "shares memory"


@every_network
def test_checkpoint_of_the_backbone_loads(network: Network) -> None:
    net = transform(randomise(network.build(1)).eval(), HALF, example_inputs=network.inputs(), verify=False)
    other = randomise(network.build(1), seed=5).eval()
    result = net.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("anytime.") for name in result.missing_keys), result.missing_keys
    assert_full_equals_backbone(net, other, network.inputs(), tolerance=TOLERANCE)


@every_network
def test_l1_order_keeps_the_function(network: Network) -> None:
    full, inputs = converted(network).full, network.inputs()
    net = transform(full, NestedChannels(widths=(0.5, 1.0), order="l1"), example_inputs=inputs, verify=False).eval()
    with torch.no_grad():
        error = difference(full(*inputs), net(*inputs).levels[-1])
    assert error < TOLERANCE
    permuted = [n for n, t in full.state_dict().items() if not torch.equal(t, net.state_dict()[n])]
    assert permuted, "nothing was reordered"
