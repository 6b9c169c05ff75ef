"""Sandwich sampling: any width, over the network's own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anytimeify import AnytimeModel, InPlaceDistillation, NestedChannels, Outputs, SandwichSampler, SchemeError
from tests.backbones import images, residual_net
from tests.rounding import close

SHARED = NestedChannels((0.25, 0.5, 1.0), norms="shared", heads="shared")


def sampler(count: int = 4, **options: Any) -> tuple[AnytimeModel, SandwichSampler]:
    net = residual_net(SHARED)
    generator = torch.Generator().manual_seed(0)
    return net, SandwichSampler(net, count, generator=generator, **options).eval()


def test_smallest_and_largest_and_random_ones_between() -> None:
    _, sample = sampler(5)
    for _ in range(20):
        widths = sample.draw()
        assert (widths[0], widths[-1]) == (0.25, 1.0)
        assert list(widths) == sorted(widths)
        assert len(set(widths)) == 5
    assert sample.draw() != sample.draw()


def test_outputs_cheapest_first() -> None:
    net, sample = sampler()
    outputs = sample(images())
    assert isinstance(outputs, Outputs)
    assert len(outputs.levels) == len(sample.widths) == 4
    assert close(outputs.levels[0], net(images(), level=0))
    assert close(outputs.levels[-1], net(images(), level=-1))


@pytest.mark.parametrize("width", [0.25, 0.3, 0.5, 0.77, 1.0])
def test_a_width_is_the_level_that_a_scheme_would_make(width: float) -> None:
    net, sample = sampler()
    expected = sample.run_at(width, images())
    assert close(sample.net_at(width)(images()), expected)
    folded = sample.net_at(width, fold=True)(images())
    assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()
    if width in SHARED.widths:
        assert close(net(images(), level=SHARED.widths.index(width)), expected)
    parameters = sum(parameter.numel() for parameter in sample.net_at(width).parameters())
    assert parameters <= net.levels[-1].cost.params


def test_gradients_reach_the_parameters_of_the_net() -> None:
    net, sample = sampler()
    sample.train()
    InPlaceDistillation()(sample(images()), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_running_statistics_are_those_of_the_net() -> None:
    net, sample = sampler()
    before = net.get_buffer("bn1.running_mean").clone()
    net.train()
    sample.run_at(0.5, images())
    after = net.get_buffer("bn1.running_mean")
    assert not torch.equal(after[:4], before[:4])
    assert torch.equal(after[4:], before[4:])


def test_graphs_follow_the_net_to_another_precision_and_mode() -> None:
    net, sample = sampler()
    sample.run_at(0.5, images())
    net.double()
    assert sample.run_at(0.5, images().double()).dtype == torch.float64
    net.train()
    first, second = (sample.run_at(0.5, images().double()) for _ in range(2))
    assert not torch.equal(first, second)  # dropout


def test_graphs_are_kept_by_channels_and_forgotten_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from anytimeify.runtime import sampling

    made: list[Any] = []
    from anytimeify.codegen.to_modules import to_modules

    def counted(program: Any) -> Any:
        made.append(program)
        return to_modules(program)

    monkeypatch.setattr(sampling, "to_modules", counted)
    _, sample = sampler(cache=2)
    for width in (0.5, 0.51, 0.5, 0.25, 0.75, 0.5, 1.0):  # 8 channels: 0.5 and 0.51 are the same, 1 is the net's own
        sample.run_at(width, images())
    assert len(made) == 4


def test_statistics_of_one_width_can_be_estimated_anew() -> None:
    net, sample = sampler()
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(images(16, seed), torch.zeros(16)) for seed in range(2)]
    small = sample.net_at(0.5, batches=batches)
    y = torch.nn.functional.conv2d(batches[0][0], small.get_parameter("stem.weight"), padding=1)
    z = torch.nn.functional.conv2d(batches[1][0], small.get_parameter("stem.weight"), padding=1)
    torch.testing.assert_close(small.get_buffer("bn1.running_mean"), (y.mean((0, 2, 3)) + z.mean((0, 2, 3))) / 2)
    folded = sample.net_at(0.5, batches=batches, fold=True)
    torch.testing.assert_close(folded(images()), small(images()))
    assert not any("bn" in name for name in folded.state_dict())
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())


def test_channels_in_multiples() -> None:
    _, sample = sampler(multiple_of=4)
    assert sample.net_at(0.3).get_parameter("stem.weight").shape[0] == 4
    assert sample.net_at(0.6).get_parameter("stem.weight").shape[0] == 8


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        (NestedChannels((0.5, 1.0)), {}, "norms=shared and heads=shared"),
        (NestedChannels((0.5, 1.0), norms="shared"), {}, "private to a level"),
        (NestedChannels((0.5, 1.0), connectivity="triangular", norms="shared", heads="shared"), {}, "triangular"),
        (SHARED, {"low": 0.0}, "expected 0 < low < high <= 1"),
        (SHARED, {"low": 0.8, "high": 0.5}, "expected 0 < low < high <= 1"),
        (SHARED, {"high": 1.5}, "expected 0 < low < high <= 1"),
        (SHARED, {"count": 1}, "at least 2 widths"),
    ],
)
def test_refusals(scheme: NestedChannels, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        SandwichSampler(residual_net(scheme), **options)


@pytest.mark.parametrize("width", [0.0, -1.0, 1.5])
def test_widths_out_of_range(width: float) -> None:
    _, sample = sampler()
    with pytest.raises(SchemeError, match=r"expected a number in \(0, 1\]"):
        sample.net_at(width)


def test_training_lowers_the_loss() -> None:
    net, sample = sampler(3)
    sample.train()
    x, target = images(40), torch.arange(40) % 5
    loss: InPlaceDistillation = InPlaceDistillation()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    losses: list[Tensor] = []
    for _ in range(30):
        optimiser.zero_grad()
        losses.append(loss(sample(x), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]
