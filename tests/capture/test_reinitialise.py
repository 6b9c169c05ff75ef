"""Fresh copies start as the backbone did: as its initialisers draw, or as its constructor left its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.initial_values import looks_drawn
from anytimeify.capture.reinitialise import redrawn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def spread(tensor: Tensor) -> float:
    return float(tensor.detach().std())


def trained(layer: nn.Linear) -> nn.Linear:
    """As training leaves a layer: units of other lengths."""
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(1, 30, layer.out_features)[:, None])
    return layer


INITIALISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "He, outputs": lambda w: nn.init.kaiming_normal_(w, mode="fan_out"),
    "He, uniform": nn.init.kaiming_uniform_,
    "Glorot": nn.init.xavier_uniform_,
    "fixed": lambda w: nn.init.normal_(w, std=0.01),
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.3),
    "not centred": lambda w: nn.init.uniform_(w, 0.1, 0.5),
}


LAYERS: dict[str, Callable[[], nn.Linear | nn.Conv2d]] = {
    "linear": lambda: nn.Linear(48, 96),
    "convolution": lambda: nn.Conv2d(16, 64, 3),
    "depthwise": lambda: nn.Conv2d(64, 64, 3, groups=64),
}


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_constructor_drew_is_drawn_again(name: str, kind: str) -> None:
    layer = LAYERS[kind]()
    INITIALISERS[name](layer.weight)
    drawn = redrawn(layer)["weight"].detach()
    assert not torch.equal(drawn, layer.weight)
    assert spread(drawn) == pytest.approx(spread(layer.weight), rel=0.15)
    assert float(drawn.mean()) == pytest.approx(float(layer.weight.detach().mean()), abs=0.25 * spread(layer.weight))


def test_constants_of_a_constructor_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(5))
    nn.init.zeros_(net.get_parameter("0.bias"))
    nn.init.zeros_(net.get_parameter("1.weight"))
    nn.init.constant_(net.get_parameter("2.weight"), 1e-6)
    drawn = redrawn(net)
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(drawn[name], net.get_parameter(name)), name


def test_what_is_trained_tells_nothing() -> None:
    net = nn.Sequential(trained(nn.Linear(64, 64)), nn.BatchNorm1d(64))
    nn.init.uniform_(net.get_parameter("1.weight"))
    net.get_buffer("1.running_mean").normal_()
    drawn = redrawn(net)
    assert spread(drawn["0.weight"]) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert torch.equal(drawn["1.weight"], torch.ones(64))
    assert torch.equal(drawn["1.running_mean"], torch.zeros(64))


def test_few_entries_tell_nothing_in_a_trained_network() -> None:
    """A small head looks drawn whatever training did to it; that norms have learnt tells."""
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 10))
    with torch.no_grad():
        net.get_parameter("2.weight").mul_(5)
    usual = 1 / math.sqrt(3 * 64)
    assert spread(redrawn(net)["2.weight"]) == pytest.approx(5 * usual, rel=0.1)
    nn.init.normal_(net.get_parameter("1.bias"))
    assert spread(redrawn(net)["2.weight"]) == pytest.approx(usual, rel=0.1)


def test_biases_go_with_their_weights() -> None:
    """Values that lie beside weights as they were drawn were drawn too; beside trained ones they are trained."""
    drawn, other = nn.Linear(64, 256), trained(nn.Linear(64, 256))
    for layer in (drawn, other):
        nn.init.normal_(layer.bias, std=1e-6)
    assert spread(redrawn(drawn)["bias"]) == pytest.approx(1e-6, rel=0.2)
    assert spread(redrawn(other)["bias"]) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.2)


class Scaled(nn.Module):
    """Initialisers of its own, and a last layer that the constructor draws smaller afterwards, as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.apply(self._init_weights)
        nn.init.normal_(self.last.weight, std=0.005)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def test_what_a_constructor_does_after_the_initialisers() -> None:
    drawn = redrawn(Scaled())
    assert spread(drawn["first.weight"]) == pytest.approx(0.02, rel=0.1)
    assert spread(drawn["last.weight"]) == pytest.approx(0.005, rel=0.1)


class Outer(nn.Module):
    """A part that initialises what is inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.inner.bias, 2.0)
        nn.init.normal_(self.inner.weight, std=0.5)


def test_initialisers_of_the_whole_come_after_those_of_its_parts() -> None:
    net = Outer()
    trained(net.inner)
    drawn = redrawn(net)
    assert spread(drawn["inner.weight"]) == pytest.approx(0.5, rel=0.1)
    assert (drawn["inner.bias"] == 2).all()


def test_patterns_stay_and_rotations_are_drawn_as_such() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32), nn.Embedding(50, 64, padding_idx=0))
    nn.init.eye_(net.get_parameter("0.weight"))
    nn.init.orthogonal_(net.get_parameter("1.weight"), 1.5)
    nn.init.normal_(net.get_parameter("2.weight"), std=0.1).data[0] = 0
    drawn = redrawn(net)
    assert torch.equal(drawn["0.weight"], torch.eye(64))
    rotation = drawn["1.weight"]
    torch.testing.assert_close(rotation @ rotation.T, 1.5**2 * torch.eye(32), atol=1e-4, rtol=0)
    assert not torch.equal(rotation, net.get_parameter("1.weight"))
    assert (drawn["2.weight"][0] == 0).all()
    assert spread(drawn["2.weight"][1:]) == pytest.approx(0.1, rel=0.1)


class Tables(nn.Module):
    """Parameters that no initialiser knows: a token that is drawn, and a table that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 256))
        angles = torch.arange(64)[:, None] / 100 ** (torch.arange(16) / 16)
        self.positions = nn.Parameter(torch.cat([angles.sin(), angles.cos()], 1))
        self.decay = nn.Parameter(torch.arange(1.0, 65.0).log())


def test_parameters_that_no_initialiser_knows() -> None:
    net = Tables()
    drawn = redrawn(net)
    assert not torch.equal(drawn["token"], net.token)
    assert spread(drawn["token"]) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(drawn["positions"], net.positions)
    assert torch.equal(drawn["decay"], net.decay)


def test_attention_is_drawn_by_its_own_initialiser() -> None:
    net = nn.MultiheadAttention(32, 4)
    with torch.no_grad():
        net.in_proj_weight.mul_(torch.linspace(1, 30, 96)[:, None])
    assert spread(redrawn(net)["in_proj_weight"]) == pytest.approx(math.sqrt(2 / (32 + 96)), rel=0.1)


def test_the_layers_of_a_torchvision_network() -> None:
    prepare_torchvision()
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(zero_init_residual=True)
    drawn = redrawn(net)
    assert spread(drawn["layer4.1.conv2.weight"]) == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.02)
    for name, parameter in net.named_parameters():
        assert spread(drawn[name]) == pytest.approx(spread(parameter), rel=0.1), name
    assert (drawn["layer1.0.bn2.weight"] == 0).all()


def test_draws_look_drawn_and_trained_filters_do_not() -> None:
    assert sum(not looks_drawn(torch.rand(16, 8, 3, 3)) for _ in range(200)) == 0
    assert sum(not looks_drawn(torch.randn(64, 3)) for _ in range(200)) == 0
    assert not looks_drawn(torch.randn(16, 8, 9).cumsum(-1))  # neighbours resemble each other
    assert not looks_drawn(torch.randn(16, 64) * torch.linspace(1, 10, 16)[:, None])
    assert not looks_drawn(torch.randn(16, 64) + torch.randn(64))
