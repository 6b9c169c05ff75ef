"""Thresholds and temperatures from held-out data: what they promise holds on that data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from anytimeify import ArgumentError, BudgetError, Confidence, Entropy, Patience
from anytimeify.early_exit.policies import Scored
from anytimeify.early_exit.thresholds import Recorded, evaluate, for_accuracy, for_budget, record, temperatures
from tests.staged.nets import exits_of, images, net_with_exits

POLICIES: tuple[Scored, ...] = (Confidence(), Entropy())
MACS = (100, 250, 700)


def held_out(samples: int = 400, classes: int = 4, seed: int = 0) -> Recorded:
    """Three exits, each better than the one before, on samples of which some are harder."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples,), generator=generator)
    ease = torch.rand(samples, generator=generator) * 3
    exits = []
    for strength in (1.0, 2.0, 3.0):
        noise = torch.randn(samples, classes, generator=generator)
        exits.append(noise + nn.functional.one_hot(targets, classes) * (ease * strength)[:, None])
    return Recorded(tuple(exits), targets, MACS)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("drop", [0.0, 0.01, 0.05, 1.0])
def test_accuracy_drops_no_further_than_said(policy: Scored, drop: float) -> None:
    data = held_out()
    full = evaluate(lambda predictions, exit: False, data)
    found = evaluate(for_accuracy(data, drop, policy), data)
    assert found.accuracy >= full.accuracy - drop - 1e-9
    assert found.macs < full.macs == MACS[-1]


def test_the_search_finds_nearly_the_best_thresholds() -> None:
    data = held_out(60)
    target = evaluate(lambda predictions, exit: False, data).accuracy - 0.02
    scores = [Confidence().score(logits, exit) for exit, logits in enumerate(data.predictions[:-1])]
    tried = [Confidence(threshold=pair) for pair in itertools.product(*(one.tolist() for one in scores))]
    fitting = [found.macs for policy in tried if (found := evaluate(policy, data)).accuracy >= target - 1e-9]
    assert evaluate(for_accuracy(data, 0.02), data).macs <= 1.05 * min(fitting)


def test_own_thresholds_are_no_dearer_than_a_common_one() -> None:
    data = held_out()
    target = evaluate(lambda predictions, exit: False, data).accuracy - 0.01
    common = [evaluate(Confidence(threshold=step / 100), data) for step in range(101)]
    cheapest = min(found.macs for found in common if found.accuracy >= target - 1e-9)
    assert evaluate(for_accuracy(data, 0.01), data).macs <= cheapest


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("macs", [100, 101, 180, 300, 699, 700, 10_000])
def test_budgets_are_kept_and_used(policy: Scored, search: bool, macs: int) -> None:
    found = evaluate(for_budget(held_out(), macs, policy, search=search), held_out())
    assert found.macs <= macs
    assert search or found.macs >= min(macs, MACS[-1]) * 0.95


def test_shares_are_a_geometric_series() -> None:
    found = evaluate(for_budget(held_out(4000), 300), held_out(4000))
    first, second, third = found.shares
    assert second / first == pytest.approx(third / second, rel=0.02)
    assert found.macs == pytest.approx(300, rel=0.01)


def test_a_search_with_targets_makes_no_more_errors() -> None:
    data = held_out()
    for macs in (150, 250, 400):
        blind, searched = (evaluate(for_budget(data, macs, search=search), data) for search in (False, True))
        assert searched.accuracy >= blind.accuracy


def test_a_budget_below_the_first_exit_is_refused() -> None:
    with pytest.raises(BudgetError, match="macs=99: the first exit alone costs 100"):
        for_budget(held_out(), 99)


def test_samples_that_are_equally_sure_leave_together() -> None:
    same = torch.tensor([[3.0, 0.0]]).expand(10, 2)
    data = Recorded((same, same), torch.zeros(10, dtype=torch.int64), (1, 10))
    assert evaluate(for_budget(data, 5), data).shares == (1.0, 0.0)
    assert evaluate(for_accuracy(data, 0.0), data).shares == (1.0, 0.0)


def test_one_exit_leaves_nothing_to_choose() -> None:
    data = held_out()
    alone = Recorded(data.predictions[-1:], data.targets, (700,))
    for policy in (for_accuracy(alone, 0.1), for_budget(alone, 700)):
        assert evaluate(policy, alone).shares == (1.0,)


def test_samples_without_a_score_go_on() -> None:
    data = held_out(20)
    data.predictions[0][:7] = math.nan
    assert evaluate(for_budget(data, 100), data).shares[0] == pytest.approx(13 / 20)
    assert evaluate(for_accuracy(data, 1.0), data).shares[0] == pytest.approx(13 / 20)
    assert evaluate(for_budget(data, 100, search=True), data).shares[0] == pytest.approx(13 / 20)


# Temperatures.


def likelihood(logits: Tensor, targets: Tensor, temperature: float) -> float:
    return float(nn.functional.cross_entropy(logits / temperature, targets))


def test_temperatures_make_targets_most_likely() -> None:
    data = held_out()
    for logits, temperature in zip(data.predictions, temperatures(data), strict=True):
        best = likelihood(logits, data.targets, temperature)
        assert best <= min(likelihood(logits, data.targets, temperature * factor) for factor in (0.97, 1.0, 1.03))


def test_temperatures_undo_a_scale() -> None:
    data = held_out()
    scaled = Recorded(tuple(3 * logits for logits in data.predictions), data.targets, MACS)
    assert temperatures(scaled) == pytest.approx([3 * one for one in temperatures(data)], rel=1e-3)


def test_temperatures_have_bounds() -> None:
    sure, targets = torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 1])
    found = temperatures(Recorded((sure, -sure), targets, (1, 2)))
    assert 0.01 <= found[0] < 0.2
    assert found[1] == pytest.approx(100.0, rel=1e-3)


# Data.


def test_predictions_are_recorded_from_batches() -> None:
    net = net_with_exits()
    (x,), target = images(5), torch.tensor([0, 1, 2, 3, 4])
    data = record(net.staged(), [(x[:3], target[:3]), (x[3:], target[3:])])
    assert data.macs == net.staged().macs
    assert data.targets.tolist() == [0, 1, 2, 3, 4]
    for found, expected in zip(data.predictions, exits_of(net, x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("policy", [Confidence(threshold=0.3), Entropy(threshold=0.9), Patience(1)])
def test_an_evaluation_says_what_the_network_does(policy: Confidence | Entropy | Patience) -> None:
    (x,), staged = images(20), net_with_exits().staged()
    data = record(staged, [(x, torch.zeros(20, dtype=torch.int64))])
    found = staged(x, policy=policy)
    expected = evaluate(policy, data)
    assert expected.shares == tuple((found.exits == exit).double().mean().item() for exit in range(3))
    assert expected.accuracy == pytest.approx((found.prediction.argmax(1) == 0).double().mean().item())


def test_dense_predictions_count_positions() -> None:
    logits, targets = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    logits[:, 0, :2] = 9.0
    logits[:, 1, 2:] = 9.0
    data = Recorded((logits, logits), targets, (1, 2))
    assert evaluate(Confidence(), data).accuracy == 0.5
    assert evaluate(for_accuracy(data, 0.0), data).shares == (1.0, 0.0)
    assert all(one > 1 for one in temperatures(data))


def test_what_does_not_fit_is_refused() -> None:
    data = held_out(5)
    with pytest.raises(ArgumentError, match="expected as many costs as predictions"):
        Recorded(data.predictions, data.targets, (1, 2))
    with pytest.raises(ArgumentError, match=r"targets of shape \(4,\): expected"):
        Recorded(data.predictions, data.targets[:4], MACS)
    with pytest.raises(ArgumentError, match="drop=2: expected a share"):
        for_accuracy(data, 2)
    with pytest.raises(ArgumentError, match="chosen for Confidence or Entropy, not for Patience"):
        for_accuracy(data, 0.1, Patience(1))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="given no batches"):
        record(net_with_exits().staged(), [])
    with pytest.raises(ArgumentError, match="a batch is a dict"):
        record(net_with_exits().staged(), [{"x": 1}])
