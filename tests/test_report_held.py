"""What holds the cheapest level: the reasons, and what they add up to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.runtime.model import AnytimeModel


class StreamAsOutput(nn.Module):
    """A residual stream that is returned: it keeps its size, and two of three layers read or write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = x + self.block(x)
        return result


class ThreeHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 24), nn.Linear(24, 4)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        result: Tensor = self.head((x + self.out(y)).mean(1))
        return result


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def narrowed(model: nn.Module, x: Tensor, **fields: object) -> AnytimeModel:
    return transform(model, NestedChannels((0.25, 1.0), **fields), x)  # type: ignore[arg-type]  # any fields


def reasons(net: AnytimeModel) -> list[tuple[str, str, str]]:
    report = net.report()
    assert sum(row.share for row in report.held) == pytest.approx(report.levels[0].share, rel=0.05)
    assert str(report).splitlines()[2].startswith("Level 0 costs")
    return [(row.why, row.where, row.advice) for row in report.held]


def test_a_stream_that_is_an_output() -> None:
    ((why, where, advice),) = reasons(narrowed(StreamAsOutput(), torch.randn(2, 3, 8, 8)))
    assert (why, where) == ("an output of the model", "output (the model itself)")
    assert "output=" in advice


def test_units_and_what_is_left_out() -> None:
    found = reasons(narrowed(ThreeHeads(), torch.randn(2, 5, 8), where="inner"))
    assert [(why, where) for why, where, _ in found] == [
        ("stays whole: 24 channels", "embed"),
        ("keeps 1 of 3 units of 8 channels", "qkv"),
    ]
    assert "where=" in found[0][2]
    assert "steps of 1/3" in found[1][2]


def test_rounding_up() -> None:
    found = reasons(narrowed(mlp(), torch.randn(2, 8), multiple_of=32))
    assert [(why, advice) for why, _, advice in found] == [("keeps 32 of 64 channels", "multiple_of=1")] * 2


def test_nothing_is_said_where_levels_are_cheap() -> None:
    report = narrowed(mlp(), torch.randn(2, 8)).report()
    assert report.held == ()
    assert str(report).splitlines()[2].startswith("Levels")
