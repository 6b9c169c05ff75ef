"""Costs read off the axis rules against torch's own counter and against counting by hand."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import NestedChannels, NestedWeights, transform
from anytimeify._torch import prepare_torchvision
from anytimeify.analysis.cost import cost
from anytimeify.capture import capture
from anytimeify.passes.scheme import Scheme
from anytimeify.testing.costs import assert_costs_are_found
from tests.passes.every_scheme import EVERY, TAXONOMY, net_of

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


@pytest.mark.parametrize("also", ["alone", "taxonomy", "consensus"])
@pytest.mark.parametrize("name", EVERY)
def test_levels_cost_what_their_extracts_do(name: str, also: str) -> None:
    net = net_of(name, TAXONOMY if also == "taxonomy" else None, "learned" if also == "consensus" else None)
    assert_costs_are_found(net)


class Positions(nn.Module):
    """Attention with a table of relative positions, a packed projection, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(2 * 9 - 1, 4))
        self.index: Tensor
        self.register_buffer("index", torch.arange(9)[:, None] - torch.arange(9)[None, :] + 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.flatten()].view(9, 9, 4).permute(2, 0, 1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, bias)
        return nn.functional.linear(x + self.proj(mixed.transpose(1, 2).flatten(2)), self.embedding.weight)


@pytest.mark.parametrize("connectivity", ["dense", "triangular"])
def test_tables_of_positions_and_ties_are_held_once(connectivity: Literal["dense", "triangular"]) -> None:
    scheme = NestedChannels((0.5, 1.0), connectivity=connectivity)
    net = transform(Positions(), scheme, (torch.randint(11, (3, 9)),))
    assert_costs_are_found(net)
    half = net.extract(0)
    assert half.get_parameter("table").shape == (17, 2)
    assert net.levels[0].cost.params == 11 * 8 + (8 + 1) * 24 + (8 + 1) * 8 + 17 * 2


class Standardised(nn.Module):
    """A weight that is computed of a weight and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gain = nn.Linear(6, 8), nn.Parameter(torch.rand(8, 1) + 0.5)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean(1, keepdim=True)
        weight = centred / centred.norm(dim=1, keepdim=True) * self.gain
        head: Tensor = self.head(nn.functional.linear(self.stem(x).relu(), weight).relu())
        return head


@pytest.mark.parametrize(
    "scheme",
    [
        NestedChannels((0.5, 1.0)),
        NestedChannels((0.5, 1.0), connectivity="triangular"),
        NestedWeights((0.3, 1.0)),
        NestedWeights((0.3, 1.0), gradients="straight-through"),
    ],
    ids=str,
)
def test_computed_weights_cost_what_they_are_made_of(scheme: Scheme) -> None:
    net = transform(Standardised(), scheme, (torch.randn(3, 6),))
    assert_costs_are_found(net)
    full = net.extract(-1)
    if getattr(scheme, "connectivity", "dense") == "dense":
        assert dict(full.named_parameters()).keys() == dict(Standardised().named_parameters()).keys()
    folded = dict(net.extract(-1, fold=True).named_parameters())
    assert not {"weight", "gain"} & folded.keys()


def test_a_wrong_claim_is_found() -> None:
    net = net_of("channels", None)
    level = net.levels[0]
    other = replace(level, cost=level.cost._replace(params=level.cost.params + 1))
    wrong = copy.deepcopy(net)
    object.__setattr__(wrong, "_compiled", replace(wrong._compiled, levels=(other, *net.levels[1:])))
    with pytest.raises(
        AssertionError, match=rf"level 0 .* claims {level.cost.macs} .* and {level.cost.params + 1} par"
    ):
        assert_costs_are_found(wrong)


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
