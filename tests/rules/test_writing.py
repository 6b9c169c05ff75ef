"""Networks that write into tensors, along channels and at indices: a level is the thin network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.testing import check
from tests.rounding import close
from tests.rules.thin_copy import copy_blocks

X = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))


class Graph(nn.Module):
    """Messages along edges, added up at their ends; `how` as torch_geometric does, as with a mean, as with rows."""

    edges: Tensor

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.update, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(0, 1)).view(x.shape[0], 5, -1).transpose(0, 1)
        start, end = self.edges
        messages = self.update(h).relu()[start]
        base, index = torch.zeros_like(h), end.view(-1, 1, 1).expand_as(messages)
        if self.how == "add":
            base.scatter_add_(0, index, messages)
        elif self.how == "mean":
            base = base.scatter_reduce(0, index, messages, "mean", include_self=False)
        else:
            base.index_add_(0, end, messages)
        degree = torch.zeros(5).index_add_(0, end, torch.ones(6)).pow_(-0.5).view(5, 1, 1)
        return self.head((base * degree + h).mean(0))  # type: ignore[no-any-return]  # of torch


@pytest.mark.parametrize("how", ["add", "mean", "rows"])
def test_graphs(how: str) -> None:
    is_thin(lambda width: Graph(width, how), lambda name, dim: 1)


class Gate(nn.Module):
    """Writes both halves of its channels, through `narrow` as e3nn does or through slices, in another order."""

    def __init__(self, width: int, through: str) -> None:
        super().__init__()
        self.through, self.middle = through, width // 2
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, half = self.a(x).relu(), self.middle
        out = h.new_zeros(h.shape)
        if self.through == "narrow":
            out.narrow(-1, 0, half).copy_(h.narrow(-1, half, half))
            out.narrow(-1, half, half).copy_(h.narrow(-1, 0, half).sigmoid())
        else:
            out[..., :half] = h[..., half:]
            out[..., half:] = h[..., :half].sigmoid()
        return self.b(out)  # type: ignore[no-any-return]  # of torch


@pytest.mark.parametrize("through", ["narrow", "slices"])
def test_gates(through: str) -> None:
    halves = {"a.weight": 0, "a.bias": 0, "b.weight": 1}
    is_thin(lambda width: Gate(width, through), lambda name, dim: 2 if halves.get(name) == dim else 1)


class Tensordot(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Parameter(torch.randn(2, width, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tensordot(self.a(x).relu(), self.b, dims=([1, 2], [2, 1]))
        return y


def test_tensordot() -> None:
    is_thin(Tensordot, lambda name, dim: 1)


class Units(nn.Module):
    """A softmax over hidden units, and one over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.gate, self.head = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.gate(x) / 2).softmax(-1)
        over_positions = self.a(x).softmax(1)
        return self.head((gate * over_positions).sum(1))  # type: ignore[no-any-return]  # of torch


def test_softmax_over_hidden_units() -> None:
    is_thin(Units, lambda name, dim: 1)


class Brightest(nn.Module):
    """The largest channel, whichever it is, as spatial attention has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.head(h * h.max(-1, keepdim=True).values.sigmoid())  # type: ignore[no-any-return]  # of torch


def test_the_value_of_an_extremum() -> None:
    is_thin(Brightest, lambda name, dim: 1)


def is_thin(make: Callable[[int], nn.Module], blocks: Callable[[str, int], int]) -> None:
    torch.manual_seed(0)
    model = make(8)
    net = transform(model, NestedChannels((0.5, 1.0), heads="shared"), X)
    check(net, model, (X,))
    thin = copy_blocks(model, make(4), blocks).eval()
    assert close(net.eval()(X, level=0), thin(X))
