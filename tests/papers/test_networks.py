"""The plain backbones of the papers: their sizes, their shortcuts, their initial weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from anytimeify.papers.networks import CifarResNet, DenseNet, MobileNet, WideResNet
from anytimeify.papers.networks.cifar_resnet import ZeroPaddedShortcut
from anytimeify.papers.networks.initialisers import fan_in
from anytimeify.papers.networks.mobilenet import Separable
from anytimeify.papers.networks.wide_resnet import PreActivation


def stages(model: nn.Module, size: int) -> dict[str, tuple[int, int]]:
    """Channels and rows behind every child of a network."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if output.ndim == 4 and name.startswith(("layer", "transition")):
                found[name] = (output.shape[1], output.shape[2])

        model.get_submodule(name).register_forward_hook(hook)

    for name, _ in model.named_children():
        note(name)
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, size, size))
    return found


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (CifarResNet(depth=8), 32, {"layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}),
        (CifarResNet(depth=11, block="bottleneck"), 32, {"layer1": (64, 32), "layer2": (128, 16), "layer3": (256, 8)}),
        (WideResNet(depth=10, widening=2), 32, {"layer1": (32, 32), "layer2": (64, 16), "layer3": (128, 8)}),
        (
            DenseNet(depth=10),
            32,
            {
                "layer1": (40, 32),
                "transition1": (40, 16),
                "layer2": (64, 16),
                "transition2": (64, 8),
                "layer3": (88, 8),
            },
        ),
        (MobileNet(100, early_stride=1), 32, {"layer1": (256, 32), "layer2": (512, 16), "layer3": (1024, 8)}),
        (MobileNet(100), 224, {"layer1": (256, 28), "layer2": (512, 14), "layer3": (1024, 7)}),
    ],
    ids=["resnet", "bottleneck", "wide", "dense", "mobile", "mobile-imagenet"],
)
def test_stages(model: nn.Module, size: int, expected: dict[str, tuple[int, int]]) -> None:
    assert stages(model, size) == expected


@pytest.mark.parametrize(
    ("make", "depth", "message"),
    [
        (lambda depth: CifarResNet(depth=depth), 33, "basic blocks make networks of 6n"),
        (lambda depth: CifarResNet(depth=depth), 2, "basic blocks make networks of 6n"),
        (lambda depth: CifarResNet(depth=depth, block="bottleneck"), 32, "bottleneck blocks make networks of 9n"),
        (lambda depth: WideResNet(depth=depth), 27, "wide residual networks have 6n"),
        (lambda depth: DenseNet(depth=depth), 41, "dense networks without bottlenecks have 3n"),
    ],
)
def test_depths_that_there_are_not(make: Callable[[int], nn.Module], depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth}: {message}"):
        make(depth)


def test_the_shortcut_pads_with_zeros_at_the_end() -> None:
    x = torch.randn(2, 3, 4, 4)
    pooled = nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(ZeroPaddedShortcut(3, 5, 2)(x), torch.cat([pooled, torch.zeros(2, 2, 2, 2)], 1))
    torch.testing.assert_close(ZeroPaddedShortcut(3, 4, 1)(x), torch.cat([x, torch.zeros(2, 1, 4, 4)], 1))
    model = CifarResNet(depth=11, block="bottleneck")
    padded = [name for name, module in model.named_modules() if isinstance(module, ZeroPaddedShortcut)]
    assert padded == ["layer1.0.shortcut", "layer2.0.shortcut", "layer3.0.shortcut"]


def test_the_projection_reads_what_is_normed_and_activated() -> None:
    block = PreActivation(3, 5, 2).eval()
    assert block.shortcut is not None
    nn.init.zeros_(block.conv2.weight)
    nn.init.uniform_(block.bn1.weight)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(block(x), block.shortcut(torch.relu(block.bn1(x))))
    assert [name for name, _ in block.shortcut.named_parameters()] == ["weight"]
    same = PreActivation(3, 3).eval()
    nn.init.zeros_(same.conv2.weight)
    torch.testing.assert_close(same(x), x)


def test_dropout_is_between_the_convolutions() -> None:
    assert (
        sum(isinstance(module, nn.Dropout) for module in WideResNet(depth=10, widening=1, dropout=0.3).modules()) == 3
    )
    assert not any(isinstance(module, nn.Dropout) for module in WideResNet(depth=10, widening=1).modules())


def test_dense_layers_put_their_channels_behind() -> None:
    layer = DenseNet(depth=7).layer1[0]
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(layer(x)[:, :16], x)
    assert layer(x).shape == (2, 28, 4, 4)


def test_five_layers_of_the_mobile_network_are_alike() -> None:
    model = MobileNet(10)
    assert [type(layer) for layer in model.layer2.get_submodule("body").children()] == [Separable] * 5
    assert sum(isinstance(module, Separable) for module in model.modules()) == 13


@pytest.mark.parametrize("model", [CifarResNet(depth=20), WideResNet(depth=10, widening=4), DenseNet(depth=22)])
def test_weights_are_drawn_for_the_outputs(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            height, width = module.kernel_size
            expected = (2 / (height * width * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)


def test_weights_are_drawn_for_the_inputs() -> None:
    model = WideResNet(depth=10, widening=4, initialise=fan_in)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 5000:
            assert float(module.weight.detach().std()) == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.05)
    assert float(model.fc.bias.detach().abs().max()) == 0


def test_copies_can_be_drawn_in_the_same_way() -> None:
    """As schemes do that add layers: they call `_init_weights` for each."""
    model = WideResNet(depth=10, widening=1, initialise=fan_in)
    norm = nn.BatchNorm2d(4000)
    model._init_weights(norm)
    assert float(norm.weight.detach().mean()) == pytest.approx(0.5, abs=0.05)
