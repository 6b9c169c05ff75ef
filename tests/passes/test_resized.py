"""Tensors of another size, drawn in the manner of the first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify.passes.resized import resized


@pytest.mark.parametrize(
    "initialise",
    [
        nn.init.kaiming_normal_,
        lambda w: nn.init.kaiming_normal_(w, mode="fan_out"),
        lambda w: nn.init.kaiming_uniform_(w, a=5**0.5),
        nn.init.xavier_uniform_,
        lambda w: nn.init.normal_(w, std=0.02),
    ],
)
@pytest.mark.parametrize("shape", [(256, 64, 3, 3), (64, 256, 3, 3), (32, 32, 3, 3)])
def test_the_spread_follows_the_initialiser(initialise: object, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start: Tensor = initialise(torch.empty(64, 128, 3, 3))  # type: ignore[operator]
    expected: Tensor = initialise(torch.empty(shape))  # type: ignore[operator]
    drawn = resized(start, shape)
    assert drawn.shape == expected.shape
    assert float(drawn.std() / expected.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constants_stay_constants(value: float) -> None:
    assert torch.equal(resized(torch.full((4,), value), (7,)), torch.full((7,), value))


def test_the_same_size_keeps_the_values_and_parameters_stay_parameters() -> None:
    weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)
    result = resized(weight, (3, 4))
    assert isinstance(result, nn.Parameter)
    assert not result.requires_grad
    assert torch.equal(result, weight)
    assert result.data_ptr() != weight.data_ptr()
