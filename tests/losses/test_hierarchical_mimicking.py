"""Hierarchical mimicking: numbers worked out by hand, who teaches whom, which terms are drawn, and what is refused."""

from __future__ import annotations

import copy
from itertools import permutations
from math import log, sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses import HierarchicalMimicking, JointLoss

Sampling = Any  # a parameter of the test


def branches(levels: int = 3, *, dense: bool = False, seed: int = 0) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 5, 2, 3) if dense else (4, 5)
    logits = [torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(levels)]
    target = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
    return Outputs(tuple(one.requires_grad_() for one in logits)), target


def mimicking(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term for name, term in terms.items() if "/mimicking/" in name}


def active(terms: dict[str, Tensor]) -> set[str]:
    return {name for name, term in mimicking(terms).items() if term.item() > 0}


def pairs(*levels: int) -> set[str]:
    return {f"level{student}/mimicking/level{teacher}" for student, teacher in permutations(levels, 2)}


# Two classes, target 1. z_0 = (0, ln 3) says (1/4, 3/4), z_1 = (0, 0) says (1/2, 1/2). At T = 2 z_0 says
# (1, sqrt 3) / (1 + sqrt 3).
BY_HAND = Outputs((torch.tensor([[0.0, log(3)]], dtype=torch.double), torch.zeros(1, 2, dtype=torch.double)))
TARGET = torch.tensor([1])
# KL((1/2, 1/2) || (1/4, 3/4)) and KL((1/4, 3/4) || (1/2, 1/2))
TO_0, TO_1 = log(2) / 2 + log(2 / 3) / 2, log(1 / 2) / 4 + 3 * log(3 / 2) / 4
P, Q = 1 / (1 + sqrt(3)), sqrt(3) / (1 + sqrt(3))
WARM_TO_0 = 4 * (log(1 / (2 * P)) / 2 + log(1 / (2 * Q)) / 2)
WARM_TO_1 = 4 * (P * log(2 * P) + Q * log(2 * Q))


@pytest.mark.parametrize(
    ("loss", "to_0", "to_1"),
    [
        (HierarchicalMimicking(), TO_0, TO_1),
        (HierarchicalMimicking(alpha=0.25), TO_0 / 4, TO_1 / 4),
        (HierarchicalMimicking(temperature=2.0), WARM_TO_0, WARM_TO_1),
        (HierarchicalMimicking(sampling="bernoulli", probability=1.0), TO_0, TO_1),
        (HierarchicalMimicking(sampling="bernoulli", probability=0.0), 0.0, 0.0),
        (HierarchicalMimicking(sampling="bernoulli", probability=0.0).eval(), TO_0, TO_1),
    ],
    ids=str,
)
def test_numbers_by_hand(loss: HierarchicalMimicking, to_0: float, to_1: float) -> None:
    expected = {
        "level0/cross_entropy": log(4 / 3),
        "level1/cross_entropy": log(2),
        "level0/mimicking/level1": to_0,
        "level1/mimicking/level0": to_1,
    }
    terms = loss.terms(BY_HAND, TARGET)
    assert list(terms) == list(expected)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert loss(BY_HAND, TARGET).item() == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_two_branches_have_three_cross_entropies_and_six_divergences(dense: bool, temperature: float) -> None:
    out, target = branches(dense=dense)
    terms = HierarchicalMimicking(0.5, temperature).terms(out, target)
    assert set(mimicking(terms)) == pairs(0, 1, 2)
    assert len(terms) == 3 + 6
    for student, teacher in permutations(range(3), 2):
        p = (out.levels[teacher] / temperature).softmax(1)
        q = (out.levels[student] / temperature).softmax(1)
        expected = (p * (p / q).log()).sum(1).mean() * temperature**2 * 0.5
        torch.testing.assert_close(terms[f"level{student}/mimicking/level{teacher}"], expected)


@pytest.mark.parametrize("dense", [False, True])
def test_branches_that_agree_have_nothing_to_mimic(dense: bool) -> None:
    out, target = branches(1, dense=dense)
    copies = Outputs(tuple(out.levels[0].detach().float().clone() for _ in range(3)))
    terms = HierarchicalMimicking(temperature=3.0).terms(copies, target)
    assert all(term.item() == 0 for term in mimicking(terms).values())


@pytest.mark.parametrize(("student", "teacher"), list(permutations(range(3), 2)))
def test_a_pair_moves_its_student_alone_and_as_soft_labels_do(student: int, teacher: int) -> None:
    out, target = branches()
    temperature = 2.0
    HierarchicalMimicking(temperature=temperature).terms(out, target)[
        f"level{student}/mimicking/level{teacher}"
    ].backward()
    assert [level.grad is not None for level in out.levels] == [index == student for index in range(3)]
    fresh = out.levels[student].detach().requires_grad_()
    labels = (out.levels[teacher] / temperature).softmax(1).detach()
    (F.cross_entropy(fresh / temperature, labels) * temperature**2).backward()
    torch.testing.assert_close(out.levels[student].grad, fresh.grad)


def test_alpha_zero_is_deep_supervision() -> None:
    out, target = branches()
    terms = HierarchicalMimicking(alpha=0.0).terms(out, target)
    expected = JointLoss().terms(out, target)
    assert list(terms) == list(expected)
    assert all(terms[name].item() == expected[name].item() for name in terms)


def test_one_level_alone_has_nobody_to_mimic() -> None:
    out, target = branches(1)
    assert list(HierarchicalMimicking(sampling="terms").terms(out, target)) == ["level0/cross_entropy"]


@pytest.mark.parametrize("sampling", ["all", "bernoulli", "terms"])
def test_the_loss_is_the_sum_of_its_terms_and_adds_nothing_to_a_state_dict(sampling: Sampling) -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling=sampling)
    torch.manual_seed(0)
    total = loss(out, target)
    torch.manual_seed(0)
    torch.testing.assert_close(total, torch.stack(list(loss.terms(out, target).values())).sum())
    assert not loss.state_dict()


# Which terms count.


def test_a_pair_counts_if_both_ends_are_on_and_the_backbone_always_is() -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling="bernoulli", per="step")
    torch.manual_seed(0)
    seen = {frozenset(active(loss.terms(out, target))) for _ in range(100)}
    assert seen == {frozenset(pairs(*on, 2)) for on in ((), (0,), (1,), (0, 1))}


@pytest.mark.parametrize(
    ("sampling", "probability", "expected"),
    [
        ("bernoulli", 0.5, 2 * (0.5 + 0.5 + 0.25)),
        ("bernoulli", 0.8, 2 * (0.8 + 0.8 + 0.64)),
        ("terms", 0.5, 6 * (1 - (5 / 6) ** 6)),
    ],
)
def test_the_expected_number_of_terms(sampling: Sampling, probability: float, expected: float) -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling=sampling, probability=probability, per="step")
    torch.manual_seed(0)
    with torch.no_grad():
        counts = [len(active(loss.terms(out, target))) for _ in range(2000)]
    assert sum(counts) / len(counts) == pytest.approx(expected, abs=0.15)  # about three standard deviations


def test_terms_are_drawn_one_by_one_and_never_all() -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling="terms")
    torch.manual_seed(0)
    seen = [active(loss.terms(out, target)) for _ in range(300)]
    assert min(map(len, seen)) == 1  # at most five of six are drawn
    assert max(map(len, seen)) == 6
    assert any("level0/mimicking/level1" in one and "level1/mimicking/level0" not in one for one in seen)


def test_dropped_terms_have_no_gradient_and_cross_entropies_stay() -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling="bernoulli", probability=0.0)
    loss(out, target).backward()
    dropped = [level.grad for level in out.levels]
    again, _ = branches()
    JointLoss()(again, target).backward()
    for left, right in zip(dropped, again.levels, strict=True):
        torch.testing.assert_close(left, right.grad)


def test_an_epoch_keeps_its_branches_until_it_is_resampled() -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling="bernoulli")
    assert loss.gates is None
    loss.resample()  # before anybody knows how many branches there are
    torch.manual_seed(1)
    epochs = []
    for _ in range(20):
        loss.resample()
        steps = [active(loss.terms(out, target)) for _ in range(5)]
        assert all(step == steps[0] for step in steps)
        epochs.append(frozenset(steps[0]))
    assert len(set(epochs)) == 4


def test_seeds_reproduce_the_draws() -> None:
    out, target = branches()

    def draws(per: Any, sampling: Sampling) -> list[set[str]]:
        torch.manual_seed(3)
        loss = HierarchicalMimicking(sampling=sampling, per=per)
        result = []
        for _ in range(10):
            result.append(active(loss.terms(out, target)))
            loss.resample()
        return result

    for per, sampling in [("epoch", "bernoulli"), ("step", "bernoulli"), ("step", "terms")]:
        assert draws(per, sampling) == draws(per, sampling)


def test_the_full_objective_draws_nothing() -> None:
    out, target = branches()
    state = torch.get_rng_state()
    loss = HierarchicalMimicking()
    loss.resample()
    loss(out, target)
    HierarchicalMimicking(sampling="terms").eval()(out, target)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampling", ["bernoulli", "terms"])
def test_nothing_is_dropped_in_evaluation_mode(sampling: Sampling) -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling=sampling, probability=0.0)
    loss(out, target)
    loss.eval()
    assert active(loss.terms(out, target)) == pairs(0, 1, 2)
    torch.testing.assert_close(loss(out, target), HierarchicalMimicking()(out, target))


def test_the_draw_is_a_buffer_that_copies_and_fits_other_outputs() -> None:
    out, target = branches()
    loss = HierarchicalMimicking(sampling="bernoulli")
    loss(out, target)
    assert [name for name, _ in loss.named_buffers()] == ["gates"]
    assert loss.half().gates is not None
    assert loss.gates is not None
    assert loss.gates.dtype == torch.bool
    assert torch.equal(copy.deepcopy(loss).gates, loss.gates)  # type: ignore[arg-type]  # drawn
    more, target = branches(4)
    assert len(mimicking(loss.terms(more, target))) == 12


def test_a_new_draw_leaves_the_backward_pass_of_the_last_one_alone() -> None:
    out, target = branches()
    for per in ("epoch", "step"):
        loss = HierarchicalMimicking(sampling="bernoulli", per=per)
        first = loss(out, target)
        loss.resample()
        (first + loss(out, target)).backward()
    assert all(level.grad is not None for level in out.levels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"alpha": float("nan")}, "finite"),
        ({"temperature": 0.0}, "positive"),
        ({"temperature": float("inf")}, "positive"),
        ({"sampling": "some"}, "'all' or 'bernoulli' or 'terms'"),
        ({"per": "batch"}, "'epoch' or 'step'"),
        ({"probability": 1.5}, "at most 1"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalMimicking(**options)


def test_outputs_that_are_refused() -> None:
    out, target = branches()
    loss = HierarchicalMimicking()
    other = Outputs((*out.levels, torch.zeros(4, 6)))
    with pytest.raises(ValueError, match=r"level 3 has shape \(4, 6\), but level 0 has \(4, 5\)"):
        loss(other, target)
    with pytest.raises(ValueError, match=r"target of shape \(3,\)"):
        loss(out, target[:3])
