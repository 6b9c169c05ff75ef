"""Exit policies on predictions written by hand, and as plain data."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anytimeify import ArgumentError, Confidence, Entropy, Patience
from anytimeify.early_exit.policies import ExitPolicy, policy_from_dict, policy_to_dict


def logits(*rows: tuple[float, ...]) -> Tensor:
    """Logits of these probabilities."""
    return torch.tensor(rows).log()


def stops(policy: ExitPolicy, *predictions: Tensor) -> list[bool]:
    """What the policy says at the exit of the last prediction, by sample."""
    return [bool(one) for one in torch.as_tensor(policy(predictions, len(predictions) - 1)).flatten()]


def test_confidence_is_the_largest_probability() -> None:
    seen = logits((0.6, 0.3, 0.1), (0.8, 0.1, 0.1), (0.1, 0.2, 0.7))
    assert stops(Confidence(threshold=0.65), seen) == [False, True, True]
    assert stops(Confidence(threshold=(0.65, 0.75)), seen, seen) == [False, True, False]


def test_a_temperature_is_that_of_the_exit() -> None:
    sharp, flat = Confidence(threshold=0.5, temperature=(1.0, 1e3)), logits((0.6, 0.3, 0.1))
    assert stops(sharp, flat) == [True]
    assert stops(sharp, flat, flat) == [False]
    assert Confidence().with_temperatures([2.0, 3.0]) == Confidence(temperature=(2.0, 3.0))


def test_entropy_is_a_share_of_the_largest() -> None:
    seen = [torch.zeros(1, 4), torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]]), logits((0.5, 0.5, 0.0, 0.0))]
    assert Entropy().score(torch.cat(seen), 0).tolist() == pytest.approx([-1.0, 0.0, -0.5])
    assert stops(Entropy(threshold=0.5 + 1e-6), torch.cat(seen)) == [False, True, True]


def test_the_score_of_a_dense_prediction_is_the_mean_over_positions() -> None:
    pixels = torch.stack([logits((0.9, 0.1), (0.9, 0.1)), logits((0.9, 0.1), (0.5, 0.5))]).transpose(1, 2)
    assert Confidence().score(pixels, 0).tolist() == pytest.approx([0.9, 0.7])
    assert stops(Patience(), pixels, pixels.flip(1)) == [False, False]


def test_patience_waits_for_agreement() -> None:
    first, second = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    assert stops(Patience(1), first) == [False]  # of all
    assert stops(Patience(1), first, second) == [True, False, True]
    assert stops(Patience(2), first, second) == [False]
    assert stops(Patience(2), first, second, second) == [True, False, True]
    assert stops(Patience(1), first, second, second) == [True, True, True]


@pytest.mark.parametrize("policy", [Confidence(threshold=0.0), Entropy(threshold=1.0)])
def test_what_is_no_number_never_stops(policy: Any) -> None:
    assert stops(policy, torch.tensor([[math.nan, 1.0], [0.0, 1.0]])) == [False, True]
    assert stops(policy, torch.tensor([[math.nan, 1.0]])) == [False]


def test_scores_of_half_precision_are_those_of_single() -> None:
    half = torch.tensor([[8.0, 0.0, 1.0]], dtype=torch.float16)
    assert torch.equal(Confidence().score(half, 0), Confidence().score(half.float(), 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Confidence(threshold=math.nan), "threshold=nan: expected a number"),
        (lambda: Confidence(threshold=True), "threshold=True: expected a number"),
        (lambda: Entropy(threshold=()), r"threshold=\(\): expected a number"),
        (lambda: Entropy(temperature=(1.0, 0.0)), r"temperature=\(1\.0, 0\.0\): expected positive numbers"),
        (lambda: Patience(0), "exits=0: expected a whole number, 1 or more"),
        (lambda: Confidence()([torch.zeros(3, 1)], 0), r"shape \(3, 1\): expected .* at least two classes"),
        (lambda: Confidence()([torch.zeros(3)], 0), r"shape \(3,\): expected"),
        (lambda: Confidence(threshold=(0.5,))([torch.zeros(1, 2)] * 2, 1), "has 1 thresholds, and was asked at exit 1"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        Confidence(),
        Confidence(threshold=(0.5, math.inf), temperature=(1.5, 2.0, 1.0)),
        Entropy(threshold=(-math.inf, 0.25)),
        Patience(3),
    ],
)
def test_policies_are_plain_data(policy: ExitPolicy) -> None:
    text = json.dumps(policy_to_dict(policy), allow_nan=False)
    assert policy_from_dict(json.loads(text)) == policy


def test_a_function_is_no_plain_data() -> None:
    with pytest.raises(ArgumentError, match="cannot be written to a file"):
        policy_to_dict(lambda predictions, exit: True)


@pytest.mark.parametrize("threshold", [0.3, float(torch.tensor(0.3)), 1 / 3, 0.1 + 0.2])
@pytest.mark.parametrize("policy", [Confidence, Entropy])
def test_one_sample_is_decided_as_it_would_be_among_others(
    policy: type[Confidence | Entropy], threshold: float
) -> None:
    class Given(policy):  # type: ignore[misc, valid-type]  # either of the two
        def score(self, scores: Tensor, exit: int) -> Tensor:
            return scores

    middle = torch.tensor([policy().least(threshold)])
    near = torch.cat([middle.nextafter(middle - 1), middle, middle.nextafter(middle + 1)])
    assert stops(Given(threshold=threshold), near) == [False, True, True]
    assert [stops(Given(threshold=threshold), one[None]) for one in near] == [[False], [True], [True]]
