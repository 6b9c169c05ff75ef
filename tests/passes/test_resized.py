"""Tensors of another size, drawn in the manner of the first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anytimeify.passes.rewrites.resized import Spread, resized, spreads


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


def network(initialise: Callable[[Tensor], Tensor]) -> tuple[Spread, ...]:
    """The spreads of a network whose stages double their channels."""
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 32, 1, 1), (10, 64)]
    return spreads(initialise(torch.empty(shape)) for shape in shapes)


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[int, int], float]]] = {
    "outputs": (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), lambda inputs, outputs: 2 / outputs),
    "inputs": (nn.init.kaiming_normal_, lambda inputs, outputs: 2 / inputs),
    "LeCun": (lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"), lambda inputs, outputs: 1 / inputs),
    "Glorot": (nn.init.xavier_normal_, lambda inputs, outputs: 2 / (inputs + outputs)),
    "unusual": (lambda w: nn.init.xavier_normal_(w, 1.4), lambda inputs, outputs: 1.4**2 * 2 / (inputs + outputs)),
    "fixed": (lambda w: nn.init.normal_(w, std=0.05), lambda inputs, outputs: 0.0025),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", [(256, 32, 3, 3), (64, 128, 3, 3)])
def test_the_other_weights_tell_which_fan_counts(name: str, shape: tuple[int, int, int, int]) -> None:
    """A weight of twice as many outputs as inputs is the same by He's law of outputs and LeCun's of inputs."""
    initialise, variance = OTHERS[name]
    torch.manual_seed(0)
    drawn = resized(initialise(torch.empty(64, 32, 3, 3)), shape, network(initialise))
    outputs, inputs, height, width = shape
    expected = variance(inputs * height * width, outputs * height * width) ** 0.5
    assert float(drawn.std() / expected) == pytest.approx(1, abs=0.05)


def test_a_gain_that_nothing_tells_of_goes_by_the_inputs() -> None:
    torch.manual_seed(0)
    drawn = resized(0.3 * torch.randn(64, 100), (64, 400))
    assert float(drawn.std()) == pytest.approx(0.15, rel=0.05)


def test_constants_and_vectors_have_no_spread() -> None:
    weight = torch.randn(4, 5)
    found = spreads([torch.zeros(3, 3), torch.randn(7), torch.ones(2, 2, dtype=torch.long), weight, weight])
    assert [one.shape for one in found] == [(4, 5)]
