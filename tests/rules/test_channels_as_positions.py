"""Convolutions along channels (efficient channel attention) narrow with them; along positions they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.analysis.axes import Axes, analyse
from anytimeify.capture import capture
from anytimeify.testing import assert_exactly_thin, check, randomise
from tests.rules.thin_copy import copy_blocks

HALF = NestedChannels(widths=(0.5, 1.0))


class Attention(nn.Module):
    """Efficient channel attention: a convolution along the channels of the mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        gate: Tensor = self.conv(y).sigmoid()
        return x * gate.view(x.shape[0], -1, 1, 1).expand_as(x)


class Hidden(Attention):
    """With hidden channels in between, as an option of timm has it."""

    def __init__(self) -> None:
        super().__init__(kernel_size=1)
        self.conv = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(), nn.Conv1d(4, 1, 3, padding=1))  # type: ignore[assignment]


class Network(nn.Module):
    """Attention over plain channels, over whole groups, and over a concatenation."""

    def __init__(self, attention: type[nn.Module], share: int = 1, **options: Any) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16 // share, 3, padding=1), attention(**options)
        self.groups, self.second = nn.Conv2d(16 // share, 24 // share, 3, groups=4 // share), attention(**options)
        self.third, self.head = attention(**options), nn.Linear(40 // share, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        y = self.second(self.groups(x))
        result: Tensor = self.head(self.third(torch.cat([x[:, :, 1:-1, 1:-1], y], 1)).mean((2, 3)))
        return result


OPTIONS: tuple[dict[str, Any], ...] = (
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 4, "dilation": 2},
    {"kernel_size": 4, "padding": "same"},
)


def images() -> tuple[Tensor]:
    return (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)


def thin_network(full: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The head reads 16 channels and then 24."""
    thin = Network(Attention, 2, **options).eval()
    weight = full.state_dict()["head.weight"]
    parts = [weight[:, :8], weight[:, 16:28]]
    copy_blocks(full, thin)
    thin.load_state_dict({**thin.state_dict(), "head.weight": torch.cat(parts, 1)})
    return thin


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch, of its own copy
def test_half_level_is_the_half_width_constructor(options: dict[str, Any]) -> None:
    full = randomise(Network(Attention, **options)).eval()
    net = transform(full, HALF, images())
    assert_exactly_thin(net, 0, thin_network(full, options), images())
    check(net, full, images())


def test_order_by_l1_leaves_such_channels_where_they_are() -> None:
    full = randomise(Network(Attention, kernel_size=3, padding=1)).eval()
    net = transform(full, NestedChannels((0.5, 1.0), order="l1"), images()).eval()
    torch.testing.assert_close(net(*images()).levels[-1], full(*images()))
    axes = axes_of(full, images())
    (groups,) = axes.narrowable
    assert groups.size // groups.quantum == 4
    assert groups.ordered is not None
    assert groups.ordered.reason == "a convolution slides along it"


def test_hidden_channels_of_the_attention() -> None:
    axes = axes_of(Network(Hidden), images())
    assert {group.name for group in axes.narrowable} == {"stem", "first.conv.0", "second.conv.0", "third.conv.0"}


def axes_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Axes:
    return analyse(capture(model, inputs).program)


class Wrong(Attention):
    """Not every convolution along channels keeps their number."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.mean((2, 3))[:, None])
        return x * y.mean(-1, keepdim=True)[..., None]


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "padding": 1}]
)
def test_channels_whose_number_changes_are_pinned(options: dict[str, Any]) -> None:
    axes = axes_of(Network(Wrong, **options), images())
    assert not axes.narrowable
    assert {group.pin.reason for group in axes.groups if group.name in ("stem", "groups") and group.pin} == {
        "position 'h'"
    }


class LearnedImage(nn.Module):
    """A learned image, whose positions nothing but convolutions has anything to do with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.conv, self.head = nn.Conv2d(channels, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.conv(self.image).mean((2, 3)) * x.mean())
        return result


def test_positions_of_a_learned_image_are_pinned() -> None:
    axes = axes_of(LearnedImage(6), images())
    pinned = {(site.tensor, site.dim) for group in axes.groups if group.pin for site in group.sites}
    assert not {site.dim for group in axes.narrowable for site in group.sites} & {2, 3}
    assert ("image", 1) not in pinned


class Spectrogram(nn.Module):
    """A single channel of an input: its dimensions are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.conv(x).mean((2, 3)))
        return result


def test_kernels_and_inputs_are_pinned() -> None:
    x = torch.randn(2, 1, 8, 8)
    axes = axes_of(Spectrogram(), (x,))
    assert [(group.name, group.sites[0].dim) for group in axes.narrowable] == [("conv", 0)]
    attention = axes_of(Network(Attention, kernel_size=3, padding=1), images())
    sites = {(site.tensor, site.dim) for group in attention.narrowable for site in group.sites}
    assert not any(tensor.endswith("conv.weight") for tensor, _ in sites)
