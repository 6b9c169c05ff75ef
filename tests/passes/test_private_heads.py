"""Private heads: whichever way the last layer is written, its own tensors are private to each level, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as weight_norm_by_hook

from anytimeify import NestedChannels, transform
from tests.rounding import close

HIDDEN, CLASSES = 16, 5


class Net(nn.Module):
    """A convolution and a hidden layer, both shared, and a head."""

    def __init__(self, head: nn.Module, *, maps: bool = False) -> None:
        super().__init__()
        self.stem, self.hidden, self.maps = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, HIDDEN), maps
        self.head = head

    def forward(self, x: Tensor) -> Any:
        x = self.hidden(self.stem(x).relu().mean((2, 3))).relu()
        return self.head(x[..., None, None] if self.maps else x)


class Function(nn.Module):
    """A head that is written by hand, of a weight (classes or features first), and more."""

    def __init__(self, compute: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.compute = compute
        self.tensors = nn.ParameterList([nn.Parameter(torch.randn(shape) / 4) for shape in shapes])

    def forward(self, x: Tensor) -> Any:
        return self.compute(x, *self.tensors)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(HIDDEN, HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x.sin())
        return result


class Several(nn.Module):
    def __init__(self, *parts: nn.Module, joined: bool) -> None:
        super().__init__()
        self.parts, self.joined = nn.ModuleList(parts), joined

    def forward(self, x: Tensor) -> Any:
        results = tuple(part(x) for part in self.parts)
        return torch.cat(results, 1) if self.joined else results


def by_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many networks
        return weight_norm_by_hook(nn.Linear(HIDDEN, CLASSES))


def linear() -> nn.Linear:
    return nn.Linear(HIDDEN, CLASSES)


OUT_IN, IN_OUT = (CLASSES, HIDDEN), (HIDDEN, CLASSES)
HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "matmul": lambda: Function(lambda x, w: x @ w, IN_OUT),
    "transposed": lambda: Function(lambda x, w: x @ w.t(), OUT_IN),
    "weight first": lambda: Function(lambda x, w: (w @ x.t()).t(), OUT_IN),
    "mm": lambda: Function(torch.mm, IN_OUT),
    "addmm": lambda: Function(lambda x, w, b: torch.addmm(b, x, w), IN_OUT, (CLASSES,)),
    "einsum": lambda: Function(lambda x, w, b: torch.einsum("ni,oi->no", x, w) + b, OUT_IN, (CLASSES,)),
    "cosine": lambda: Function(
        lambda x, w, s: F.linear(F.normalize(x, dim=1), F.normalize(w, dim=1)) * s.exp(), OUT_IN, (1,)
    ),
    "standardised": lambda: Function(lambda x, w: F.linear(x, (w - w.mean(1, keepdim=True)) / w.std()), OUT_IN),
    "parametrised": lambda: parametrizations.weight_norm(linear()),
    "weight norm by hook": by_hook,
    "bilinear": Bilinear,
    "joined": lambda: Several(linear(), linear(), joined=True),
    "behind a norm": lambda: nn.Sequential(nn.LayerNorm(HIDDEN), linear()),
    "before a norm": lambda: nn.Sequential(linear(), nn.BatchNorm1d(CLASSES)),
    "before log softmax": lambda: nn.Sequential(linear(), nn.LogSoftmax(1)),
}


def check_private(net: Any, model: nn.Module, inputs: Tensor, own: set[str]) -> None:
    """Every lower level has the tensors `own` for itself and shares all other layers; extracts compute the same."""
    names = {name for name in net.state_dict() if name.startswith("anytime.")}
    for level in range(len(net.levels) - 1):
        prefix = f"anytime.{level}."
        assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == own
    outputs = net.eval()(inputs)
    for level, expected in enumerate(outputs.levels):
        assert close(net.extract(level)(inputs), expected)


@pytest.mark.parametrize("connectivity", ["dense", "triangular"])
@pytest.mark.parametrize("head", HEADS)
def test_the_tensors_of_the_last_layer_are_private(head: str, connectivity: Any) -> None:
    torch.manual_seed(0)
    model = Net(HEADS[head]())
    inputs = torch.randn(4, 3, 6, 6)
    scheme = NestedChannels((0.25, 0.5, 1.0), connectivity=connectivity, norms="shared")
    net = transform(model, scheme, inputs)
    own = {f"head.{name}" for name in model.head.state_dict()}
    if "norm" in head.split():  # follows `norms`
        own -= {name for name in own if name.startswith("head.1." if head == "before a norm" else "head.0.")}
    if head == "weight norm by hook":
        own = {f"head.{name}" for name, _ in model.head.named_parameters()}
    check_private(net, model, inputs, own)
    assert {name for name in net.state_dict() if not name.startswith("anytime.")} == set(model.state_dict())


def test_a_convolution_of_maps() -> None:
    model, inputs = Net(nn.Conv2d(HIDDEN, CLASSES, 1), maps=True), torch.randn(4, 3, 6, 6)
    net = transform(model, NestedChannels((0.5, 1.0)), inputs)
    check_private(net, model, inputs, {"head.weight", "head.bias"})


def test_of_a_tuple_the_prediction_has_its_own_head() -> None:
    model, inputs = Net(Several(linear(), linear(), joined=False)), torch.randn(4, 3, 6, 6)
    net = transform(model, NestedChannels((0.5, 1.0)), inputs)
    check_private(net, model, inputs, {"head.parts.0.weight", "head.parts.0.bias"})


def test_shared_heads_are_parts_of_the_full_ones() -> None:
    for head in ("transposed", "cosine", "bilinear"):
        model, inputs = Net(HEADS[head]()), torch.randn(4, 3, 6, 6)
        net = transform(model, NestedChannels((0.5, 1.0), heads="shared"), inputs)
        check_private(net, model, inputs, set())


def test_a_weight_that_is_tied_to_a_hidden_layer_is_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.code = nn.Linear(8, 12), nn.Parameter(torch.randn(10, 12))

        def forward(self, x: Tensor) -> Tensor:
            hidden = (self.stem(x) @ self.code.t()).relu()
            result: Tensor = (hidden @ self.code).relu() @ self.code.t()
            return result

    model, inputs = Tied(), torch.randn(4, 8)
    net = transform(model, NestedChannels((0.5, 1.0)), inputs)
    assert not any(name.startswith("anytime.0") for name in net.state_dict())
