"""Residual units of networks in which masks, conditioning and skip connections go around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.residual_units import ResidualUnits
from anytimeify.capture import capture
from tests.passes.streams import NETWORKS, Alternating, Forecast, PostNorm


def ends(model: nn.Module, *inputs: Tensor) -> list[list[list[str]]]:
    """The ends of blocks, by kind, for every way to see the network."""
    ways = ResidualUnits(capture(model, inputs).program).runs()
    return [[[block.end.name for block in run] for run in runs] for runs in ways]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_is_a_block_of_one_kind(kind: type[Alternating]) -> None:
    outermost, *_ = ends(kind(3), *kind.inputs)
    assert max(map(len, outermost)) == 3


def test_a_period_is_one_block() -> None:
    (program,) = [capture(Alternating(2), Alternating.inputs).program]
    ((first, second),) = next(ResidualUnits(program).runs())
    assert first.end is second.start
    assert [len(block.segments) for block in (first, second)] == [2, 2]


def test_a_norm_behind_the_sum_belongs_to_the_unit() -> None:
    assert ends(PostNorm(2), *PostNorm.inputs) == [[["layers_0_1", "layers_1_1"]]]


def test_a_unit_may_add_to_another_stream_beside() -> None:
    program = capture(Forecast(2), Forecast.inputs).program
    ((first, second),) = next(ResidualUnits(program).runs())
    assert first.beside[0][1] is second.beside[0][0]


def test_units_inside_of_units_come_next() -> None:
    class Group(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.inner:
                y = y + layer(y).relu()
            return x + y

    ways = ends(nn.Sequential(Group(), Group()), torch.randn(2, 4))
    assert [[len(run) for run in way] for way in ways] == [[2], [4]]


def test_what_is_read_elsewhere_is_no_unit() -> None:
    class Leaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            inside = self.one(x).relu()
            result: Tensor = torch.cat([x + self.other(inside), inside], 1)
            return result

    assert ends(Leaking(), torch.randn(2, 4)) == []
