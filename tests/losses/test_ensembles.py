"""The objectives of hierarchical ensembles: numbers worked out by hand, who teaches whom, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses import (
    CoDistillation,
    HierarchicalCoDistillation,
    HierarchicalLoss,
    IndependentLoss,
    Objective,
    diversity,
)


def ensemble(leaves: int = 4, *, dense: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Outputs, Tensor]:
    """Leaves, a level for each of 1, 2, 4, ... and all of them, and a target."""
    shape = (3, 5, 2, 4) if dense else (3, 5)
    members = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(leaves))
    sizes = [size for size in (1, 2, 4, 8, 16) if size < leaves] + [leaves]
    return of(members, sizes), torch.randint(5, (shape[0], *shape[2:]))


def of(members: tuple[Tensor, ...], sizes: list[int]) -> Outputs:
    return Outputs(tuple(torch.stack(members[:size]).mean(0) for size in sizes), members)


# One sample, two classes, target 1. F_1 = (0, ln 3) says (1/4, 3/4), F_2 = (0, 0) says (1/2, 1/2), and their mean
# (0, ln(3)/2) says (1, sqrt 3) / (1 + sqrt 3).
BY_HAND = Outputs((), (torch.tensor([[0.0, log(3)]]), torch.tensor([[0.0, 0.0]])))
TARGET = torch.tensor([1])
FIRST, SECOND, BOTH = log(4 / 3), log(2), log((1 + sqrt(3)) / sqrt(3))
# The teacher at T = 2: (1, 3^(1/4)) / (1 + 3^(1/4)). A student F_1 at T = 2 says what the mean says at T = 1.
ROOT = 3**0.25
P0, P1 = 1 / (1 + ROOT), ROOT / (1 + ROOT)
SOFT_FIRST = 4 * (P0 * log(1 + sqrt(3)) + P1 * log((1 + sqrt(3)) / sqrt(3)))
SOFT_SECOND = 4 * log(2)
SOFT_BOTH = 4 * -(P0 * log(P0) + P1 * log(P1))
HARD_FIRST = P0 * log(4) + P1 * log(4 / 3)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (IndependentLoss("sum"), {"member0/cross_entropy": FIRST, "member1/cross_entropy": SECOND}),
        (IndependentLoss(), {"member0/cross_entropy": FIRST / 2, "member1/cross_entropy": SECOND / 2}),
        (
            HierarchicalLoss(reduction="sum"),
            {"ensemble1/cross_entropy": FIRST, "ensemble2/cross_entropy": BOTH},
        ),
        (HierarchicalLoss(), {"ensemble1/cross_entropy": FIRST / 2, "ensemble2/cross_entropy": BOTH / 2}),
        (
            HierarchicalLoss(independent=1.0, reduction="sum"),
            {
                "member0/cross_entropy": FIRST,
                "member1/cross_entropy": SECOND,
                "ensemble1/cross_entropy": FIRST,
                "ensemble2/cross_entropy": BOTH,
            },
        ),
        (
            CoDistillation(alpha=0.25, reduction="sum"),
            {
                "member0/cross_entropy": 0.75 * FIRST,
                "member1/cross_entropy": 0.75 * SECOND,
                "member0/distillation": 0.25 * SOFT_FIRST,
                "member1/distillation": 0.25 * SOFT_SECOND,
            },
        ),
        (
            HierarchicalCoDistillation(),  # L_I is a mean of two terms, L_HD of one
            {
                "member0/cross_entropy": FIRST / 4,
                "member1/cross_entropy": SECOND / 4,
                "ensemble1/distillation": SOFT_FIRST / 2,
            },
        ),
        (
            HierarchicalCoDistillation(alpha=0.75, reduction="sum", softened="teacher", temperature=2.0),
            {
                "member0/cross_entropy": FIRST / 4,
                "member1/cross_entropy": SECOND / 4,
                "ensemble1/distillation": 0.75 * HARD_FIRST,
            },
        ),
        (
            HierarchicalCoDistillation(alpha=1.0, full_ensemble=True),
            {
                "member0/cross_entropy": 0.0,
                "member1/cross_entropy": 0.0,
                "ensemble1/distillation": SOFT_FIRST / 2,
                "ensemble2/distillation": SOFT_BOTH / 2,
            },
        ),
    ],
    ids=str,
)
def test_numbers_by_hand(loss: Objective, expected: dict[str, float]) -> None:
    terms = loss.terms(BY_HAND, TARGET)
    assert list(terms) == list(expected)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert loss(BY_HAND, TARGET).item() == pytest.approx(sum(expected.values()))


def test_the_other_leaves_teach_without_self() -> None:
    """With two leaves the teacher of each is the other: at T = 1, F_2 teaches (1/2, 1/2) and F_1 teaches (1/4, 3/4)."""
    loss = CoDistillation(alpha=1.0, temperature=1.0, reduction="sum", include_self=False)
    terms = loss.terms(BY_HAND, TARGET)
    assert terms["member0/distillation"].item() == pytest.approx((log(4) + log(4 / 3)) / 2)
    assert terms["member1/distillation"].item() == pytest.approx(log(2))


LOSSES: list[Callable[..., Objective]] = [
    IndependentLoss,
    HierarchicalLoss,
    lambda **options: HierarchicalLoss(1.0, **options),
    CoDistillation,
    HierarchicalCoDistillation,
]


@pytest.mark.parametrize("make", LOSSES)
def test_the_loss_is_the_sum_of_its_terms_and_adds_nothing_to_a_state_dict(make: Callable[..., Objective]) -> None:
    out, target = ensemble()
    loss = make()
    terms = loss.terms(out, target)
    torch.testing.assert_close(loss(out, target), torch.stack(list(terms.values())).sum())
    assert all(term.ndim == 0 for term in terms.values())
    assert not loss.state_dict()
    assert "reduction='mean'" in repr(loss)


@pytest.mark.parametrize("make", LOSSES)
def test_dense_prediction_is_the_mean_over_positions(make: Callable[..., Objective]) -> None:
    out, target = ensemble(dense=True)
    pixels = tuple(member.permute(0, 2, 3, 1).reshape(-1, 5) for member in out.members)
    loss = make()
    torch.testing.assert_close(loss(out, target), loss(of(pixels, [1, 2, 4]), target.reshape(-1)))


@pytest.mark.parametrize("loss", [HierarchicalCoDistillation(), HierarchicalLoss()], ids=str)
@pytest.mark.parametrize("sizes", [[1, 2, 4, 6], [1, 2, 3, 4, 5, 6], [6], []])
def test_ensembles_of_powers_of_two_do_not_depend_on_the_levels(loss: Objective, sizes: list[int]) -> None:
    out, target = ensemble(6)
    given = of(out.members, sizes)
    torch.testing.assert_close(loss.terms(given, target), loss.terms(out, target))
    names = {name.partition("/")[0] for name in loss.terms(given, target)}
    expected = {"ensemble1", "ensemble2", "ensemble4", "ensemble6"}
    assert {name for name in names if name.startswith("ensemble")} in (expected, expected - {"ensemble6"})


def test_every_level_may_be_distilled() -> None:
    out, target = ensemble(4)
    out = of(out.members, [1, 2, 3, 4])
    terms = HierarchicalCoDistillation(1.0, 1.0, ensembles="levels", reduction="sum").terms(out, target)
    for index in range(3):
        student, teacher = (out.levels[k].softmax(1) for k in (index, 3))
        expected = -(teacher * student.log()).sum(1).mean()
        torch.testing.assert_close(terms[f"level{index}/distillation"], expected)
    assert [name for name in terms if name.startswith("level")] == [f"level{k}/distillation" for k in range(3)]
    labelled = HierarchicalLoss(ensembles="levels").terms(out, target)
    assert list(labelled) == [f"level{k}/cross_entropy" for k in range(4)]


# Who teaches whom.


def gradients(loss: Objective, members: tuple[Tensor, ...], term: str) -> list[float]:
    """How much each leaf is moved by one summand."""
    target = torch.randint(5, (members[0].shape[0],))
    terms = loss.terms(Outputs((), members), target)
    found = torch.autograd.grad(terms[term], members, materialize_grads=True)
    return [gradient.abs().max().item() for gradient in found]


@pytest.mark.parametrize(("softened", "moves"), [("both", False), ("teacher", True)])
def test_equal_leaves_learn_nothing_from_each_other_if_both_sides_are_softened(softened: Any, moves: bool) -> None:
    logits = torch.randn(3, 5)
    members = tuple(logits.clone().requires_grad_() for _ in range(4))
    loss = HierarchicalCoDistillation(softened=softened)
    for size in (1, 2):
        moved = gradients(loss, members, f"ensemble{size}/distillation")
        assert max(moved) > 1e-3 if moves else max(moved) < 1e-6


def test_a_detached_teacher_is_not_moved() -> None:
    out, _ = ensemble(4)
    one, two = (gradients(HierarchicalCoDistillation(), out.members, f"ensemble{size}/distillation") for size in (1, 2))
    assert [value > 0 for value in one] == [True, False, False, False]
    assert [value > 0 for value in two] == [True, True, False, False]
    moved = gradients(HierarchicalCoDistillation(detach=False), out.members, "ensemble1/distillation")
    assert [value > 0 for value in moved] == [True] * 4
    assert [value > 0 for value in gradients(CoDistillation(), out.members, "member2/distillation")] == [
        *(False, False, True, False)
    ]
    apart = CoDistillation(detach=False, include_self=False)
    assert all(value > 0 for value in gradients(apart, out.members, "member2/distillation"))


def test_the_full_ensemble_against_itself_has_no_gradient() -> None:
    out, _ = ensemble(4)
    moved = gradients(HierarchicalCoDistillation(full_ensemble=True), out.members, "ensemble4/distillation")
    assert max(moved) < 1e-6
    sharpened = HierarchicalCoDistillation(full_ensemble=True, softened="teacher")
    assert min(gradients(sharpened, out.members, "ensemble4/distillation")) > 1e-3


def test_the_square_of_the_temperature_keeps_the_gradient_of_nearly_flat_logits() -> None:
    """T^2 CE(s/T, t/T) has the gradient T (softmax(s/T) - softmax(t/T)), which tends to (s - t) / C: no T left."""
    members = tuple(torch.randn(2, 3, 5, dtype=torch.float64) * 1e-4)
    moved = []
    for temperature in (1.0, 4.0):
        leaves = tuple(member.clone().requires_grad_() for member in members)
        loss = HierarchicalCoDistillation(1.0, temperature)
        term = loss.terms(Outputs((), leaves), torch.zeros(3, dtype=torch.long))["ensemble1/distillation"]
        moved.append(torch.autograd.grad(term, leaves[0])[0])
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-2, atol=1e-9)


def test_one_leaf_alone_has_nobody_to_distil() -> None:
    out, target = ensemble(1)
    assert list(HierarchicalCoDistillation().terms(out, target)) == ["member0/cross_entropy"]
    torch.testing.assert_close(HierarchicalCoDistillation(0.0)(out, target), IndependentLoss()(out, target))


@pytest.mark.parametrize(
    "loss",
    [
        IndependentLoss(),
        HierarchicalLoss(0.5, reduction="sum"),
        CoDistillation(detach=False, include_self=False),
        HierarchicalCoDistillation(detach=False, full_ensemble=True),
        HierarchicalCoDistillation(detach=False, softened="teacher"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_in_double_precision(loss: Objective, dense: bool) -> None:
    """A teacher that is detached would rightly fail: finite differences see it move."""
    out, target = ensemble(3, dense=dense, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *members: loss(Outputs((), members), target), out.members)


def test_diversity_is_the_standard_deviation_over_the_members() -> None:
    # class 0: 1, 3 -> 1; class 1: 2, 2 -> 0; class 2: 0, 4 -> 2; second sample: 0, 0, 1
    members = (torch.tensor([[1.0, 2.0, 0.0], [5.0, 5.0, 0.0]]), torch.tensor([[3.0, 2.0, 4.0], [5.0, 5.0, 2.0]]))
    assert diversity(Outputs((), members)).item() == pytest.approx((1 + 0 + 2 + 0 + 0 + 1) / 6)
    assert diversity(Outputs((), members), correction=1).item() == pytest.approx(4 / 6 * sqrt(2))
    assert diversity(Outputs((), members[:1])).item() == 0
    dense = tuple(member.T.reshape(1, 3, 2, 1) for member in members)
    assert diversity(Outputs((), dense)).item() == pytest.approx(4 / 6)


def same(members: int, **shapes: tuple[int, ...]) -> Outputs:
    """Leaves of shape (3, 5), but for those named `m<index>`."""
    return Outputs((), tuple(torch.zeros(shapes.get(f"m{index}", (3, 5))) for index in range(members)))


LABELS = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IndependentLoss("max"), "reduction is 'max': expected 'mean' or 'sum'"),  # type: ignore[arg-type]
        (lambda: HierarchicalLoss(ensembles="all"), "'powers' or 'levels'"),  # type: ignore[arg-type]
        (lambda: HierarchicalLoss(independent=-1.0), "independent is -1.0: expected a finite number, not negative"),
        (lambda: CoDistillation(alpha=1.5), "alpha is 1.5: .*, at most 1"),
        (lambda: HierarchicalCoDistillation(alpha=float("nan")), "alpha is nan"),
        (lambda: HierarchicalCoDistillation(temperature=0.0), "temperature is 0.0: expected a positive number"),
        (lambda: HierarchicalCoDistillation(softened="student"), "'both' or 'teacher'"),  # type: ignore[arg-type]
        (lambda: IndependentLoss()(Outputs((torch.zeros(3, 5),)), LABELS), "have no members"),
        (lambda: HierarchicalLoss()(Outputs((torch.zeros(3, 5),)), LABELS), "have no members"),
        (lambda: CoDistillation()(Outputs(()), LABELS), "have no members"),
        (lambda: HierarchicalCoDistillation()(Outputs(()), LABELS), "have no members"),
        (lambda: diversity(Outputs(())), "have no members"),
        (lambda: diversity(same(1), correction=1), "1 members with correction=1"),
        (lambda: IndependentLoss()(same(4, m2=(3, 6)), LABELS), r"member 2 has shape \(3, 6\), but member 0 has"),
        (lambda: IndependentLoss()(same(1, m0=(3,)), LABELS), r"member 0 has shape \(3,\): expected logits"),
        (lambda: HierarchicalCoDistillation()(same(2), LABELS[:2]), r"target of shape \(2,\)"),
        (lambda: HierarchicalLoss()(same(2), torch.zeros(3, 4)), r"target of shape \(3, 4\)"),
        (lambda: HierarchicalLoss(ensembles="levels")(same(2), LABELS), "have no levels"),
        (
            lambda: HierarchicalCoDistillation(ensembles="levels")(Outputs((torch.zeros(3, 6),), same(2)[1]), LABELS),
            r"level 0 has shape \(3, 6\), but the members have",
        ),
        (lambda: CoDistillation(include_self=False)(same(1), LABELS), "without a teacher"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
