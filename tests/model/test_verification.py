"""Verification names what differs, and takes no rounding for an error."""

from __future__ import annotations

import copy

import pytest
import torch

from anytimeify import NestedChannels, VerificationError, transform, verification
from anytimeify.runtime import extraction
from tests.backbones import Residual, images, residual_net


def test_a_level_that_differs_from_its_extract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Residual().eval()
    net = residual_net(verify=False)
    extract = extraction.extract

    def broken(*args: object, **kwargs: object) -> object:
        module = extract(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        with torch.no_grad():
            module.get_parameter("conv.bias").add_(1)
        return module

    monkeypatch.setattr(extraction, "extract", broken)
    net.load_state_dict(backbone.state_dict(), strict=False)
    with pytest.raises(
        VerificationError, match=r"level 0 \(width 0.25\) differs .* first at node level0_conv \(conv, "
    ):
        verification.verify(net, backbone)


def test_a_full_level_that_differs_from_the_captured_graph_is_named() -> None:
    backbone = Residual().eval()
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    everything = net._compiled.network.graph  # what copies are made from
    for graph in (everything, net.graphs[0].graph, net.graphs[-1].graph):
        for node in graph.nodes:
            if node.name == "add":
                node.target = torch.ops.aten.sub.Tensor
    for level in net.graphs[:1] + net.graphs[-1:]:
        level.recompile()
    with pytest.raises(VerificationError, match=r"the full level differs from the backbone by .*, first at node add "):
        verification.verify(net, backbone)


def test_a_backbone_that_captures_as_something_else_is_told_apart() -> None:
    backbone = Residual().eval()
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    with torch.no_grad():
        backbone.fc.weight.add_(1)
    with pytest.raises(VerificationError, match="the captured graph, before any rewrite, differs from the backbone"):
        verification.verify(net, backbone)


def test_rounding_and_overflow_are_not_taken_for_errors() -> None:
    backbone = Residual().eval()
    with torch.no_grad():
        backbone.fc.weight.mul_(1e30)
        backbone.stem.weight.mul_(1e30)
    assert not backbone(images()).isfinite().all()
    transform(backbone, NestedChannels((0.5, 1.0)), images())


def test_differences() -> None:
    inf, nan = float("inf"), float("nan")
    assert verification.difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.4])) == pytest.approx(0.1)
    assert verification.difference(torch.tensor([inf, nan, 2.0]), torch.tensor([inf, nan, 2.0])) == 0
    assert verification.difference(torch.tensor([inf, 2.0]), torch.tensor([-inf, 2.0])) == inf
    assert verification.difference(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert verification.difference(torch.zeros(2), torch.zeros(2)) == 0
    assert verification.difference(torch.zeros(2), torch.ones(2)) == inf
    assert verification.difference(torch.zeros(0), torch.zeros(0)) == 0
    assert verification.difference(torch.zeros(1), torch.zeros(2)) == inf


def test_verification_leaves_modes_and_statistics_alone() -> None:
    backbone = Residual()
    backbone.bn1.eval()
    before = copy.deepcopy(backbone.state_dict())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images(), verify=False)
    verification.verify(net, backbone)
    assert backbone.training
    assert not backbone.bn1.training
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
