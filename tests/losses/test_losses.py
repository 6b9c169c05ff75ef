"""The objectives against their formulas written out in numbers, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses import InPlaceDistillation, JointLoss, Objective


def outputs(levels: int = 3, *, dense: bool = False) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 5, 2, 3) if dense else (4, 5)
    predictions = tuple(torch.randn(shape, generator=generator, requires_grad=True) for _ in range(levels))
    target = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
    return Outputs(predictions), target


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    exponentials = (logits.double() / temperature).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def by_hand_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -softmax(logits).gather(1, target[:, None]).log().mean()


def by_hand_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return (p * (p / q).log()).sum(1).mean() * temperature**2


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_joint_loss_is_the_weighted_sum_of_cross_entropies(dense: bool, reduction: str) -> None:
    out, target = outputs(dense=dense)
    loss = JointLoss((0.5, 0.0, 2.0), reduction)  # type: ignore[arg-type]  # a parameter of the test
    expected = sum(w * by_hand_cross_entropy(p, target) for w, p in zip((0.5, 0.0, 2.0), out.levels, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(loss(out, target), expected.float() / (3 if reduction == "mean" else 1))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_in_place_distillation_is_labels_for_the_full_level_and_its_soft_predictions_for_the_others(
    dense: bool, temperature: float
) -> None:
    out, target = outputs(dense=dense)
    *students, full = out.levels
    expected = by_hand_cross_entropy(full, target)
    for student in students:
        expected = expected + by_hand_kl(student, full, temperature)
    torch.testing.assert_close(InPlaceDistillation(temperature)(out, target), expected.float())


def test_students_never_teach_the_full_level() -> None:
    out, target = outputs()
    loss = InPlaceDistillation()
    terms = loss.terms(out, target)
    distilled = terms["level0/distillation"] + terms["level1/distillation"]
    distilled.backward()
    assert [prediction.grad is None for prediction in out.levels] == [False, False, True]


@pytest.mark.parametrize("loss", [JointLoss(), JointLoss(reduction="mean"), InPlaceDistillation(2.0)])
def test_the_loss_is_the_sum_of_its_terms_and_adds_nothing_to_a_state_dict(loss: Objective) -> None:
    out, target = outputs()
    terms = loss.terms(out, target)
    assert len(terms) == 3
    assert all(name.startswith(f"level{index}/") for index, name in enumerate(terms))
    torch.testing.assert_close(loss(out, target), torch.stack(list(terms.values())).sum())
    assert not loss.state_dict()


def test_one_level_alone_has_nobody_to_distil() -> None:
    out, target = outputs(1)
    torch.testing.assert_close(InPlaceDistillation()(out, target), JointLoss()(out, target))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JointLoss((1.0, -1.0)), "none negative"),
        (lambda: JointLoss((1.0, float("nan"))), "finite"),
        (lambda: JointLoss(reduction="max"), "'sum' or 'mean'"),  # type: ignore[arg-type]  # refused input
        (lambda: InPlaceDistillation(0.0), "positive"),
        (lambda: InPlaceDistillation(float("inf")), "positive"),
        (lambda: JointLoss((1.0, 1.0))(*outputs()), "2 entries, but the outputs have 3 levels"),
        (lambda: JointLoss()(outputs()[0], torch.zeros(3, dtype=torch.long)), r"target of shape \(3,\)"),
        (lambda: JointLoss()(outputs()[0], torch.zeros(4, 4)), r"expected class indices of type torch.int64, \(N,\)"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
