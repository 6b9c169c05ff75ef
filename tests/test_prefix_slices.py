"""Prefixes of a weight taken together: the same values and gradients as slices, at fewer operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.codegen.prefix_slices import prefix_slices
from tests.backbones import Residual, images

SIZES = ((2, 3, 3), (4, 3, 3), (6, 8, 3), (2, 8, 3))


def by_slices(whole: Tensor) -> tuple[Tensor, ...]:
    return tuple(whole[:one, :other, :last] for one, other, last in SIZES)


@pytest.mark.parametrize("read", [(0, 1, 2, 3), (1,), (3, 0)])
def test_values_and_gradients_are_those_of_slices(read: tuple[int, ...]) -> None:
    whole = nn.Parameter(torch.randn(6, 8, 3, dtype=torch.double))
    expected, found = by_slices(whole), prefix_slices(whole, *SIZES)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    gradients: list[Tensor] = []
    for pieces in (expected, found):
        loss = torch.stack([((place + 1) * pieces[place]).square().sum() for place in read]).sum()
        gradients += torch.autograd.grad(loss, whole)
    torch.testing.assert_close(*gradients)


def test_gradients_of_gradients() -> None:
    whole = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prefix_slices(x, (2, 4), (1, 2)), (whole,))
    assert torch.autograd.gradgradcheck(lambda x: prefix_slices(x, (2, 4), (1, 2)), (whole,))


def test_per_sample_gradients() -> None:
    def loss(weight: Tensor, x: Tensor) -> Tensor:
        small, large = prefix_slices(weight, (2, 3), (4, 3))
        return (x[:3] @ small.T).square().sum() + (x[:3] @ large.T).sum()

    weight, x = torch.randn(4, 5), torch.randn(6, 5)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    torch.testing.assert_close(each[2], torch.func.grad(loss)(weight, x[2]))


def test_without_gradients_they_are_views() -> None:
    whole = nn.Parameter(torch.randn(6, 8, 3))
    with torch.no_grad():
        assert all(part.data_ptr() == whole.data_ptr() for part in prefix_slices(whole, *SIZES))
    whole.requires_grad_(False)
    assert all(part.data_ptr() == whole.data_ptr() for part in prefix_slices(whole, *SIZES))


def test_memory_formats_stay() -> None:
    whole = nn.Parameter(torch.randn(6, 8, 3, 3).contiguous(memory_format=torch.channels_last))
    (part,) = prefix_slices(whole, (3, 4, 3, 3))
    assert part.is_contiguous(memory_format=torch.channels_last)


def net_of(**options: str) -> AnytimeModel:
    torch.manual_seed(0)
    return transform(Residual(), NestedChannels((0.25, 0.5, 1.0), **options), images()).eval()  # type: ignore[arg-type]  # no dropout


@pytest.mark.parametrize("norms", ["private", "shared"])
def test_graphs_that_run_take_parts_together(norms: str) -> None:
    net = net_of(norms=norms)
    for one in (net, copy.deepcopy(net)):
        joint = one.graphs[0].graph
        assert any(one.graphs[1].graph.find_nodes(op="call_function", target=prefix_slices))
        sliced = {
            node.args[0].target for node in joint.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor)
        }
        calls = joint.find_nodes(op="call_function", target=prefix_slices)
        assert calls
        assert not sliced & {node.args[0].target for node in calls}


def test_gradients_are_those_of_the_levels_one_by_one() -> None:
    net, x = net_of(norms="private"), images()
    weights = torch.randn(3)
    losses = [weight * level.square().sum() for weight, level in zip(weights, net(x).levels, strict=True)]
    torch.stack(losses).sum().backward()
    together = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    for level, weight in enumerate(weights):
        (weight * net(x, level=level).square().sum()).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, msg=name)


def test_compiled() -> None:
    net, x = net_of(), images()
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    found = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        loss = torch.stack([level.square().sum() for level in run(x).levels]).sum()
        found.append(torch.autograd.grad(loss, weights, allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
