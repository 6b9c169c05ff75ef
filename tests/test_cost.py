"""Costs read off the axis rules against torch's own counter and against counting by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anytimeify._torch import prepare_torchvision
from anytimeify.capture import capture
from anytimeify.cost import cost

prepare_torchvision()
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nti,hij->nhtj", x, self.weight)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(), (3, 64, 64)),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(), (3, 64, 64)),
    "resnext": (lambda: torchvision.models.resnext50_32x4d(), (3, 64, 64)),
    "vit": (lambda: timm.create_model("test_vit"), (3, 160, 160)),
    "convnext": (lambda: timm.create_model("test_convnext"), (3, 160, 160)),
    "swin": (lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4]), (3, 32, 32)),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, 2, groups=2)), (3, 9, 9)),
    "einsum": (Einsum, (7, 6)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_macs_agree_with_torch(name: str) -> None:
    make, shape = BACKBONES[name]
    model, x = make().eval(), torch.randn(2, *shape)
    captured = capture(model, (x,))
    # torch counts attention only where it runs as matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x)
    mine = cost(captured.program, captured.batch)
    assert mine.macs * 2 * len(x) == counter.get_total_flops()
    assert mine.params == sum(parameter.numel() for parameter in model.parameters())


def test_a_fixed_batch_costs_the_same_per_sample() -> None:
    model, x = torchvision.models.resnet18(), torch.randn(4, 3, 64, 64)
    dynamic, fixed = capture(model, (x,)), capture(model, (x,), dynamic_shapes=(None,))
    assert fixed.batch is None
    assert cost(fixed.program, None, 4) == cost(dynamic.program, dynamic.batch)


def test_peak_memory_of_a_chain() -> None:
    # 4 -> 100 -> 3 features: at the first product the input (4) and its result (100) are alive, at the second 100 and 3
    model = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 3))
    captured = capture(model, (torch.randn(2, 4),))
    assert cost(captured.program, captured.batch).activation_bytes == 4 * (4 + 100)


def test_views_take_no_memory() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y.reshape(-1, 2, 4).transpose(1, 2).flatten(1)

    captured = capture(Viewed(), (torch.randn(2, 4),))
    program = captured.program
    assert cost(program, captured.batch).activation_bytes <= 4 * (4 + 8 + 8)  # the last flatten copies
