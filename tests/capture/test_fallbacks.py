"""Networks that `torch.export` refuses as they are: which other way takes them, and what is said where none does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, CaptureError, NestedChannels, transform
from anytimeify.testing import check

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([5, 3, 2, 1])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)


class AsksForConstants(Two):
    """As asteroid's global norms ask for their dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        dims = torch.arange(1, h.dim()).tolist()
        h = h - h.mean(dims, keepdim=True)
        scale = torch.ones(3)
        scale *= 2
        if scale.sum() > 5:
            h = h * 2
        return self.second(h)  # type: ignore[no-any-return]  # of torch


class TriesACall(Two):
    """As speechbrain's x-vectors try whether a block takes lengths."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x


class MasksByLength(Two):
    """As torchaudio's Conformer makes its mask: the longest length is that of the input."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(int(torch.max(lengths)))
        inside = places[None] < lengths[:, None]
        return self.second((self.first(x).relu() * inside.unsqueeze(-1)).mean(1))  # type: ignore[no-any-return]  # of torch


def notes(net: AnytimeModel) -> str:
    return "\n".join(net.report().notes)


@pytest.mark.parametrize(
    ("model", "inputs", "note"),
    [
        (AsksForConstants(), (X,), "values that depend on no input were computed beside the export"),
        (TriesACall(), (X,), "calls of modules that raise TypeError"),
        (MasksByLength(), (X, LENGTHS), "exported in torch's strict mode"),
    ],
)
def test_taken_in_another_way_which_is_said(model: nn.Module, inputs: tuple[Tensor, ...], note: str) -> None:
    net = transform(model, NestedChannels((0.5, 1.0)), inputs)
    check(net, model, inputs)
    assert note in notes(net)
    assert "__call__" not in vars(nn.Linear)


def test_what_needs_no_other_way_says_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "export" not in notes(transform(model, NestedChannels((0.5, 1.0)), X))


class Branches(Two):
    def forward(self, x: Tensor) -> Tensor:
        if x.gt(0).any():
            x = x * 2
        return self.second(self.first(x))  # type: ignore[no-any-return]  # of torch


class CutsByLength(Two):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        return self.second(self.first(x)[:, :longest].mean(1))  # type: ignore[no-any-return]  # of torch


class AsksForWhatChanged(Two):
    """A constant that an input was written into is none."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones(())
        scale += x.mean()
        return self.second(self.first(x) * (2 if scale.item() > 1 else 1))  # type: ignore[no-any-return]  # of torch


@pytest.mark.parametrize(
    ("model", "inputs", "line"),
    [
        (Branches(), (X,), r"if x\.gt\(0\)\.any\(\):"),
        (CutsByLength(), (X, LENGTHS), r"longest = int\(lengths\.max\(\)\)"),
        (AsksForWhatChanged(), (X,), r"2 if scale\.item\(\) > 1 else 1"),
    ],
)
def test_what_no_way_takes_is_refused_by_its_line(model: nn.Module, inputs: tuple[Tensor, ...], line: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"test_fallbacks\.py:\d+ in forward: .*{line}.*A graph cannot say"
    ) as caught:
        transform(model, NestedChannels((0.5, 1.0)), inputs)
    assert "unhinted" not in str(caught.value)
