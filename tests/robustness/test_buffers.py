"""Tensors that are no parameters: what has channels is narrowed with them, what is written to is found out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import UnsupportedOpError, transform
from tests.robustness.helpers import SCHEME, check, close, with_prefix

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Channels(nn.Module):
    """Buffers along the channels: scales, statistics, positions, a mask."""

    gamma: Tensor
    mean: Tensor
    var: Tensor
    positions: Tensor
    mask: Tensor

    def __init__(self, width: int = 8, *, persistent: bool = True) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 3)
        for name, value in {
            "gamma": torch.rand(width, 1, 1),
            "mean": torch.randn(width),
            "var": torch.rand(width) + 0.5,
            "positions": torch.randn(1, width, 4, 4),
            "mask": (torch.rand(width) > 0.3).float(),
        }.items():
            self.register_buffer(name, value, persistent=persistent)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * self.gamma + self.positions
        x = (x - self.mean[None, :, None, None]) / self.var[:, None, None].sqrt()
        result: Tensor = self.head((x * self.mask[None, :, None, None]).relu().mean((2, 3)))
        return result


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_with_channels_are_narrowed_with_them(persistent: bool) -> None:
    model = Channels(persistent=persistent)
    net = check(model, IMAGES)
    assert set(model.state_dict()) <= set(net.state_dict())
    assert ("gamma" in net.state_dict()) == persistent
    thin = with_prefix(Channels(4, persistent=persistent), model)
    close(net(IMAGES, level=0), thin(IMAGES))
    assert net.extract(0).get_buffer("gamma").shape == (4, 1, 1)


class Plain(nn.Module):
    """Tensors that nobody registered, and one that is made at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.shift, self.scales = torch.randn(8), [torch.rand(8)]
        self.made: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = torch.arange(8.0)
        result: Tensor = self.head((self.body(x) * self.scales[0] + self.shift + self.made).relu())
        return result


def test_tensors_that_nobody_registered() -> None:
    net = check(Plain(), X)
    assert not [name for name in net.state_dict() if "shift" in name]
    net.double()
    assert net(X.double(), level=0).dtype == torch.float64


class Counting(nn.Module):
    """Writes to a buffer in both modes that no prediction reads."""

    calls: Tensor
    usage: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("usage", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.body(x).relu()
        self.usage = 0.9 * self.usage + 0.1 * hidden.detach().mean(0)
        result: Tensor = self.head(self.drop(hidden))
        return result


def test_what_is_only_counted_is_counted_on_in_training() -> None:
    model = Counting()
    net = check(model, X)
    notes = [note for note in net.captured.notes if "written to in training" in note]
    assert [note.partition("'")[2].partition("'")[0] for note in notes] == ["calls", "usage"]
    assert sum("in eval mode '" in note for note in net.captured.notes) == 2  # which it writes to there too
    assert isinstance(net.get_submodule("drop"), nn.Dropout)
    again = transform(model.train(), SCHEME, X)
    for _ in range(3):
        model(X)
        again(X, level=-1)
    assert int(again.get_buffer("calls")) == int(model.calls)
    close(again.get_buffer("usage"), model.usage)
    before = again.get_buffer("usage").clone()
    again(X, level=0)  # a thin level has no say in it
    assert torch.equal(again.get_buffer("usage"), before)


class OwnNorm(nn.Module):
    """A batch norm by hand. `neutral`: in eval mode it only subtracts, and what it subtracts is zero at first."""

    mean: Tensor

    def __init__(self, *, neutral: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.neutral = nn.Linear(4, 8), nn.Linear(8, 3), neutral
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
            mean = torch.zeros_like(self.mean) if self.neutral else hidden.mean(0)
        else:
            mean = self.mean
        result: Tensor = self.head((hidden - mean).relu())
        return result


@pytest.mark.parametrize("neutral", [False, True])
def test_statistics_that_eval_mode_reads(neutral: bool) -> None:
    """Also where the statistics are neutral as yet, so that both modes compute the same numbers."""
    model = OwnNorm(neutral=neutral)
    net = check(model, X)
    model.train()
    net.train()
    for _ in range(2):
        close(net(X, level=-1), model(X))
    assert model.mean.any()
    close(net.get_buffer("mean"), model.mean)
    close(net.eval()(X, level=-1), model.eval()(X))


class Recurrent(nn.Module):
    """State that one call leaves for the next."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("state", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x) + self.state
        self.state.copy_(hidden.detach().mean(0))
        result: Tensor = self.head(hidden.relu())
        return result


def test_state_from_call_to_call_is_refused_and_the_backbone_keeps_its_own() -> None:
    model = Recurrent()
    with pytest.raises(
        UnsupportedOpError, match=r"'state' is written to by 'aten.copy_.default' .*test_buffers.py:\d+"
    ):
        transform(model, SCHEME, X)
    assert not model.get_buffer("state").any()
