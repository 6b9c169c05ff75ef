"""Tensors under several names, modules that are called several times, and memory that is shared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import AnytimeModel
from tests.robustness.helpers import check

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 12, (2, 5), generator=torch.Generator().manual_seed(0))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(self.embed(tokens)).relu())
        return result


def same_tensor(net: AnytimeModel, *names: str) -> bool:
    return len({id(net.get_parameter(name)) for name in names}) == 1


def test_an_embedding_that_is_the_head() -> None:
    net = check(LanguageModel(), TOKENS)
    assert same_tensor(net, "embed.weight", "head.weight")
    assert {"embed.weight", "head.weight"} <= net.state_dict().keys()
    net.double()
    assert same_tensor(net, "embed.weight", "head.weight")
    twin = copy.deepcopy(net)
    assert same_tensor(twin, "embed.weight", "head.weight")
    small = net.extract(0)
    assert sum(parameter.numel() for parameter in small.parameters()) == net.levels[0].cost.params


class Autoencoder(nn.Module):
    """One matrix, and the same transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.encode = nn.Linear(4, 8, bias=False)
        self.encode.weight = self.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encode(x).relu()
        result: Tensor = self.head(hidden @ self.weight + F.linear(hidden, self.weight.t()))
        return result


def test_a_matrix_and_its_transpose() -> None:
    net = check(Autoencoder(), X)
    assert same_tensor(net, "weight", "encode.weight")
    names = {(site.tensor, site.dim) for group in net.axes.narrowable for site in group.sites}
    assert ("weight", 0) in names


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.two = self.one
        self.head = nn.Linear(4, 3)
        self.other = nn.Linear(4, 4)
        self.other.bias = self.one.get_parameter("2.bias")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.one(x) + self.other(self.two(x * 2)))
        return result


def test_a_module_under_two_names_and_a_tied_bias() -> None:
    net = check(TwoNames(), X)
    assert same_tensor(net, "one.0.weight", "two.0.weight")
    assert same_tensor(net, "one.2.bias", "other.bias")


class Repeated(nn.Module):
    """The same layers three times, dropout and batch norm among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.drop(self.norm(self.conv(x)).relu())
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = Repeated()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        result: Tensor = (self.tower(one) - self.tower(other)).abs()
        return result


def test_layers_that_are_called_several_times_train_as_they_do_alone() -> None:
    """A norm that runs three times a step counts three batches; nothing of its training is lost."""
    model = Repeated()
    net = check(model, IMAGES)
    model.drop.p = net.get_submodule("drop").p = 0.0  # type: ignore[assignment]  # a float
    model.train()
    net.train()
    model.load_state_dict({name: net.state_dict()[name] for name in model.state_dict()})
    expected, result = model(IMAGES), net(IMAGES, level=-1)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(net.get_buffer("norm.running_mean"), model.norm.running_mean)
    torch.testing.assert_close(net.get_buffer("norm.running_var"), model.norm.running_var)


def test_two_towers() -> None:
    check(Siamese(), (IMAGES, IMAGES.flip(0)))


class Views(nn.Module):
    """Two parameters over one memory: torch trains them as one, copies cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False), nn.Linear(4, 3)
        self.two.weight = nn.Parameter(self.one.weight.data.t())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.two(self.one(x).relu()))
        return result


def test_parameters_that_are_views_of_one_memory_are_noted() -> None:
    notes = check(Views(), X).captured.notes
    assert [note for note in notes if "'one.weight' and 'two.weight' are views of one memory" in note]


class Halves(nn.Module):
    """Parameters side by side in one storage, as recurrent layers keep theirs: no two share an element."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(64)
        self.one, self.two = nn.Parameter(memory[:32].view(8, 4)), nn.Parameter(memory[32:].view(8, 4))
        self.both, self.head = nn.Parameter(torch.randn(16, 4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.linear(x, self.both[8:]).sigmoid()
        result: Tensor = self.head(F.linear(x, self.one) + F.linear(x, self.two) + F.linear(x, self.both[:8]) * gate)
        return result


def test_neighbours_in_memory_are_no_ties() -> None:
    assert check(Halves(), X).captured.notes == ()
