"""Numbers that `forward()` made of channel counts: which are found, and what levels compute with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import AnytimeModel, NestedChannels, SchemeError, load, transform
from anytimeify.passes.rewrites.project import project
from anytimeify.testing import check
from tests.printing import calls, lines
from tests.rounding import close
from tests.rules.thin_copy import copy_blocks

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))


class Normalised(nn.Module):
    """A norm with sqrt(channels), as diffusion networks have it, and a mean that is written as a sum over a count."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.stem, self.top = nn.Conv2d(3, c, 3), nn.Linear(c, 5)
        self.g = nn.Parameter(torch.ones(1, c, 1, 1))
        self.scale = c**0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.normalize(x, dim=1) * self.g * self.scale
        return self.top((x * torch.sigmoid(x.sum(1, keepdim=True) / x.shape[1])).mean((2, 3)))  # type: ignore[no-any-return]  # of torch


class Attention(nn.Module):
    """Heads of 4 channels, of which no width takes any: their scale stays."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(3, c), nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.head = nn.Linear(c, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2) * 4**-0.5).softmax(-1)
        return self.head((scores @ v).transpose(1, 2).flatten(2).mean(1))  # type: ignore[no-any-return]  # of torch


class OneHead(nn.Module):
    """All channels are one head, scaled by their number; a table of tokens by its root."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.embed, self.k, self.head, self.scale = nn.Linear(3, c), nn.Linear(c, c), nn.Linear(c, 2), c**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = ((x * self.scale) @ self.k(x).transpose(-1, -2)).softmax(-1)
        return self.head((scores @ x).mean(1))  # type: ignore[no-any-return]  # of torch


class Unrelated(nn.Module):
    """Numbers that happen to be powers of channel counts."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, c), nn.Linear(c, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * 8 / 2
        return self.b(F.relu(h * 0.125 + 3) * 0.5).mean(1) * 4  # type: ignore[no-any-return]  # of torch


class Square(nn.Module):
    """A sum over 8 channels and one over 8 positions look alike."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, c, 1), nn.Linear(c, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        score = torch.einsum("bchw,bchv->bwv", h, h)  # over 8 channels and 8 rows
        return self.b((h * (score / 8).mean((1, 2)).view(-1, 1, 1, 1)).mean((2, 3)))  # type: ignore[no-any-return]  # of torch


def made(make: Callable[[int], nn.Module], x: Tensor, c: int = 8, **more: str) -> tuple[nn.Module, AnytimeModel]:
    torch.manual_seed(0)
    model = make(c)
    return model, transform(model, NestedChannels((0.5, 1.0), heads="shared"), x, **more)  # type: ignore[arg-type]  # one of two words


def notes(net: AnytimeModel) -> list[str]:
    return [note for note in net.report().notes if note.startswith("a constant, ")]


@pytest.mark.parametrize(("make", "x"), [(Normalised, IMAGE), (OneHead, TOKENS)])
def test_levels_compute_with_the_number_of_their_width(
    make: Callable[[int], nn.Module], x: Tensor, tmp_path: Path
) -> None:
    model, net = made(make, x, constants="scale")
    check(net, model, (x,))
    thin = copy_blocks(model, make(4)).eval()
    assert close(net.eval()(x, level=0), thin(x))
    assert notes(net)
    assert all(note.endswith("every level computes with that of its own width") for note in notes(net))
    net.save(tmp_path / "net")
    again = load(tmp_path / "net")
    assert close(again(x, level=0), thin(x))
    assert notes(again) == notes(net)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.top = nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.top(F.normalize(self.stem(x), dim=-1) * 16**0.5)
        return result


def test_printed() -> None:
    net = transform(Scaled(), NestedChannels((0.25, 1.0)), torch.randn(2, 3), constants="scale", verify=False)
    assert "mul = mul.Tensor(div, 4.0)" in calls(net.rewritten.program)
    assert calls(project(net.rewritten.program, [0])) == lines("""
        level0_stem_weight_part0 = slice.Tensor(stem_weight, 0, 0, 4)
        level0_stem_bias_part0 = slice.Tensor(stem_bias, 0, 0, 4)
        level0_stem = linear(x, level0_stem_weight_part0, level0_stem_bias_part0)
        level0_linalg_vector_norm = linalg_vector_norm(level0_stem, 2.0, [-1], True)
        level0_clamp_min = clamp_min(level0_linalg_vector_norm, 1e-12)
        level0_expand_as = expand_as(level0_clamp_min, level0_stem)
        level0_div = div.Tensor(level0_stem, level0_expand_as)
        level0_mul = mul.Tensor(level0_div, 2.0)
        level0_top = linear(level0_mul, anytime_0_top_weight, anytime_0_top_bias)
        return level0_top
    """)


def test_numbers_are_kept_and_noted() -> None:
    model, net = made(Normalised, IMAGE)
    assert not close(net.eval()(IMAGE, level=0), copy_blocks(model, Normalised(4)).eval()(IMAGE))
    root, count = notes(net)
    assert root.startswith("a constant, 2.828427 = sqrt(8), meets an axis of 8 channels at 'mul_1' (the model itself, ")
    assert root.endswith("self.g * self.scale): levels keep it; constants='scale' makes it follow")
    assert count.startswith("a constant, 8, meets an axis of 8 channels at 'div_1'")


@pytest.mark.parametrize(("make", "x"), [(Attention, TOKENS), (Unrelated, TOKENS)])
def test_other_numbers_are_left_alone(make: Callable[[int], nn.Module], x: Tensor) -> None:
    model, net = made(make, x, constants="scale")
    check(net, model, (x,))
    assert notes(net) == []
    assert close(net.eval()(x, level=0), copy_blocks(model, make(4)).eval()(x))


def test_where_two_axes_have_the_size_the_number_stays() -> None:
    model, net = made(Square, IMAGE, constants="scale")
    check(net, model, (IMAGE,))
    (note,) = notes(net)
    assert note.endswith("and another axis of that size that does not narrow alike: levels keep it")


def test_schemes_that_narrow_nothing_have_nothing_to_note() -> None:
    net = transform(Normalised(8), "hierarchical-ensemble{depth=1}", IMAGE)
    assert notes(net) == []


def test_refusals() -> None:
    with pytest.raises(SchemeError, match="constants='drop': expected keep or scale"):
        made(Normalised, IMAGE, constants="drop")
    with pytest.raises(SchemeError, match="triangular connectivity"):
        transform(Normalised(8), "nested-channels{widths=0.5,1 connectivity=triangular}", IMAGE, constants="scale")
