"""Weights that are masked together: the same numbers as one by one, and only where they may be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anytimeify import AnytimeModel, NestedChannels, kernels, transform
from anytimeify.kernels import together
from anytimeify.kernels.layers import to_mask
from tests.kernels.test_waiting import Seen

timm = pytest.importorskip("timm")
Make = Callable[[], nn.Module]
NETWORKS: dict[str, Make] = {
    "ResNet": lambda: timm.create_model("resnet18", channels=(64, 64, 128, 128), layers=(1, 1, 1, 1), num_classes=5),
    "ViT": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=64, num_heads=4, num_classes=5
    ),
}


@pytest.fixture(autouse=True)
def _on_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_DEVICES", ("cpu", "cuda"))


def network(name: str, **options: Any) -> tuple[AnytimeModel, Tensor]:
    x = torch.randn(2, 3, 32, 32)
    return transform(NETWORKS[name](), NestedChannels(connectivity="triangular"), (x,), verify=False, **options), x


def gradients(net: nn.Module, x: Tensor, run: Callable[[Tensor], Any] | None = None) -> list[Tensor]:
    net.zero_grad()
    levels = (run or net)(x).levels
    sum(level.float().square().sum() for level in levels).backward()
    return [one.grad for one in net.parameters() if one.grad is not None]


def weights(net: AnytimeModel) -> list[together.Weight]:
    return list(to_mask(net, net._compiled.triangular))


def one_by_one(net: AnytimeModel, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(together, "_DEVICES", ())
        return gradients(net, x)


@pytest.mark.parametrize("autocast", [False, True], ids=["full", "autocast"])
@pytest.mark.parametrize("wide", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same(name: str, wide: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(name)
    if wide:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch
        x = x.to(memory_format=torch.channels_last)
    net.eval()  # running statistics stay
    with kernels.form("masked"), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = one_by_one(net, x, monkeypatch)
        found = gradients(net, x)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, expected, strict=True))


def test_few_operations_mask_all_weights() -> None:
    net, x = network("ResNet")
    layers = len(net._compiled.triangular)
    with kernels.form("masked"), Seen() as seen:
        gradients(net, x)
    assert layers > 6
    assert "aten._foreach_mul" in seen.names


def test_groups_are_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("ResNet")
    net.eval()
    with kernels.form("masked"):
        expected = one_by_one(net, x, monkeypatch)
        largest = max(layer.tensor.nbytes for layer in weights(net))
        monkeypatch.setattr(together, "_GROUP", largest)
        groups = list(together._groups(weights(net)))
        assert len(groups) > 2
        assert all(sum(one.tensor.nbytes for one in group) <= largest for group in groups)
        assert all(map(torch.equal, gradients(net, x), expected))


def test_layers_that_were_measured_say_so_and_another_size_measures_again() -> None:
    net, x = network("ResNet")
    assert not weights(net)  # nothing is known yet
    gradients(net, x)
    known = len(weights(net))
    assert known > 0  # small layers are masked
    gradients(net, torch.randn(3, 3, 32, 32))
    with kernels.form("blocks", 2):
        assert not weights(net)


def test_without_gradients_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("ResNet")
    monkeypatch.setattr(together, "_made", lambda given: pytest.fail("made"))
    with kernels.form("masked"), torch.no_grad():
        net(x)
    with kernels.form("masked"), pytest.raises(pytest.fail.Exception, match="made"):
        net(x)


def test_derivatives_of_higher_order(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("ResNet")
    net.eval()
    weight = net.get_parameter("layer1.0.conv1.weight")

    def second() -> Tensor:
        loss = sum(level.square().sum() for level in net(x).levels)
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    with kernels.form("masked"):
        found = second()
        monkeypatch.setattr(together, "_DEVICES", ())
        torch.testing.assert_close(found, second())


def test_recomputed_as_a_whole_or_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("ResNet")
    net.eval()
    expected = one_by_one(net, x, monkeypatch)
    for _ in range(2):  # the second time the forms are known
        found = gradients(net, x, lambda x: checkpoint(net, x, use_reentrant=False))
        torch.testing.assert_close(found, expected)
    parts, x = network("ResNet", checkpoint=True)
    assert parts._compiled.triangular == ()
    gradients(parts, x)


def test_a_wrapped_layer_and_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("ResNet")
    net.eval()
    with kernels.form("masked"):
        expected = one_by_one(net, x, monkeypatch)
        other = copy.deepcopy(net)
        assert all(map(torch.equal, gradients(other, x), expected))
        block = net.get_submodule("layer1.0")
        block.conv1 = nn.Sequential(block.get_submodule("conv1"))
        assert all(map(torch.equal, gradients(net, x), expected))
