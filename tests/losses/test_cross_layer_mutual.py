"""Cross-layer mutual distillation: numbers worked out by hand, who teaches whom, and what is refused."""

from __future__ import annotations

from itertools import product
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses import CrossLayerMutual


def pair(heads: int = 3, *, dense: bool = False) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 5, 2, 3) if dense else (4, 5)
    logits = [torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(2 * heads)]
    target = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
    return Outputs((), tuple(one.requires_grad_() for one in logits)), target


def of_kind(terms: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name: term for name, term in terms.items() if name.split("/")[1] == kind}


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return (p * (p / q).log()).sum(1).mean() * temperature**2


# Two classes, target 1. The heads of the first network say (1/4, 3/4) and (1/2, 1/2), those of the second (1/2, 1/2)
# and (1/5, 4/5).
BY_HAND = Outputs((), tuple(torch.tensor([[1.0, ratio]], dtype=torch.double).log() for ratio in (3.0, 1.0, 1.0, 4.0)))
TARGET = torch.tensor([1])
HALF, QUARTER, FIFTH = (1 / 2, 1 / 2), (1 / 4, 3 / 4), (1 / 5, 4 / 5)


def by_hand(teacher: tuple[float, float], student: tuple[float, float]) -> float:
    return sum(p * log(p / q) for p, q in zip(teacher, student, strict=True))


def test_numbers_by_hand() -> None:
    expected = {
        "first0/cross_entropy": log(4 / 3),
        "first1/cross_entropy": log(2),
        "second0/cross_entropy": log(2),
        "second1/cross_entropy": log(5 / 4),
        "first0/same_stage/second0": 2 * by_hand(HALF, QUARTER),
        "first0/cross_stage/second1": 3 * by_hand(FIFTH, QUARTER),
        "first1/cross_stage/second0": 0.0,
        "first1/same_stage/second1": 2 * by_hand(FIFTH, HALF),
        "second0/same_stage/first0": 2 * by_hand(QUARTER, HALF),
        "second0/cross_stage/first1": 0.0,
        "second1/cross_stage/first0": 3 * by_hand(QUARTER, FIFTH),
        "second1/same_stage/first1": 2 * by_hand(HALF, FIFTH),
    }
    loss = CrossLayerMutual(weight=0.5, same_stage=4.0, cross_stage=6.0)
    terms = loss.terms(BY_HAND, TARGET)
    assert list(terms) == list(expected)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert loss(BY_HAND, TARGET).item() == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_two_branches_each_have_six_cross_entropies_and_eighteen_divergences(dense: bool, temperature: float) -> None:
    out, target = pair(dense=dense)
    terms = CrossLayerMutual(temperature=temperature).terms(out, target)
    assert len(of_kind(terms, "cross_entropy")) == 6
    assert len(of_kind(terms, "same_stage")) == 6
    assert len(of_kind(terms, "cross_stage")) == 12
    assert len(terms) == 6 + 18
    for i, j in product(range(3), repeat=2):
        stage = "same_stage" if i == j else "cross_stage"
        first, second = out.members[i], out.members[3 + j]
        torch.testing.assert_close(terms[f"first{i}/{stage}/second{j}"], kl(first, second, temperature))
        torch.testing.assert_close(terms[f"second{j}/{stage}/first{i}"], kl(second, first, temperature))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_numbers_of_terms(heads: int) -> None:
    out, target = pair(heads)
    assert len(CrossLayerMutual().terms(out, target)) == 2 * heads + 2 * heads**2


@pytest.mark.parametrize("dense", [False, True])
def test_networks_that_agree_have_nothing_to_learn_from_each_other(dense: bool) -> None:
    out, target = pair(1, dense=dense)
    copies = Outputs((), tuple(out.members[0].detach().float().clone() for _ in range(6)))
    terms = CrossLayerMutual(temperature=3.0).terms(copies, target)
    kinds = {**of_kind(terms, "same_stage"), **of_kind(terms, "cross_stage")}
    assert len(kinds) == 18
    assert all(term.item() == 0 for term in kinds.values())


@pytest.mark.parametrize(("i", "j", "to_first"), list(product(range(3), range(3), (True, False))))
def test_a_divergence_moves_its_student_alone_and_as_soft_labels_do(i: int, j: int, to_first: bool) -> None:
    out, target = pair()
    temperature = 2.0
    stage = "same_stage" if i == j else "cross_stage"
    name = f"first{i}/{stage}/second{j}" if to_first else f"second{j}/{stage}/first{i}"
    student, teacher = (i, 3 + j) if to_first else (3 + j, i)
    CrossLayerMutual(temperature=temperature).terms(out, target)[name].backward()
    assert [member.grad is not None for member in out.members] == [index == student for index in range(6)]
    fresh = out.members[student].detach().requires_grad_()
    labels = (out.members[teacher] / temperature).softmax(1).detach()
    (F.cross_entropy(fresh / temperature, labels) * temperature**2).backward()
    torch.testing.assert_close(out.members[student].grad, fresh.grad)


def test_nothing_moves_a_network_but_its_own_heads() -> None:
    """The gradient of the first network is that of its own terms, whatever the second one's heads are trained with."""
    out, target = pair()
    loss = CrossLayerMutual()
    total = torch.autograd.grad(loss(out, target), out.members[:3])
    own = [term for name, term in loss.terms(out, target).items() if name.startswith("first")]
    for left, right in zip(total, torch.autograd.grad(torch.stack(own).sum(), out.members[:3]), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("options", "same", "cross"),
    [
        ({"weight": 0.0}, 0, 0),
        ({"same_stage": 0.0}, 0, 12),
        ({"cross_stage": 0.0}, 6, 0),
    ],
)
def test_kinds_of_terms_that_are_left_out(options: dict[str, Any], same: int, cross: int) -> None:
    terms = CrossLayerMutual(**options).terms(*pair())
    assert len(of_kind(terms, "cross_entropy")) == 6
    assert len(of_kind(terms, "same_stage")) == same
    assert len(of_kind(terms, "cross_stage")) == cross


def test_the_full_heads_alone_are_deep_mutual_learning() -> None:
    out, target = pair()
    last = Outputs((), (out.members[2], out.members[5]))
    loss = CrossLayerMutual(heads="last")
    terms = loss.terms(out, target)
    assert list(terms) == [
        "first2/cross_entropy",
        "second2/cross_entropy",
        "first2/same_stage/second2",
        "second2/same_stage/first2",
    ]
    torch.testing.assert_close(loss(out, target), CrossLayerMutual()(last, target))
    loss(out, target).backward()
    assert [member.grad is not None for member in out.members] == [False, False, True, False, False, True]


def test_the_loss_is_the_sum_of_its_terms_and_adds_nothing_to_a_state_dict() -> None:
    out, target = pair()
    loss = CrossLayerMutual()
    torch.testing.assert_close(loss(out, target), torch.stack(list(loss.terms(out, target).values())).sum())
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight is -1"),
        ({"same_stage": float("nan")}, "same_stage is nan"),
        ({"cross_stage": float("inf")}, "cross_stage is inf"),
        ({"temperature": 0.0}, "positive"),
        ({"heads": "first"}, "'all' or 'last'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossLayerMutual(**options)


def test_outputs_that_are_refused() -> None:
    out, target = pair()
    loss = CrossLayerMutual()
    with pytest.raises(ValueError, match=r"no members.*mutual-distillation.*HierarchicalMimicking"):
        loss(Outputs(out.members), target)
    with pytest.raises(ValueError, match="5 members, an odd number"):
        loss(Outputs((), out.members[:5]), target)
    with pytest.raises(ValueError, match=r"member 1 has shape \(4, 6\), but member 0 has \(4, 5\)"):
        loss(Outputs((), (out.members[0], torch.zeros(4, 6))), target)
    with pytest.raises(ValueError, match="expected logits of shape"):
        loss(Outputs((), (torch.zeros(4), torch.zeros(4))), target)
    with pytest.raises(ValueError, match=r"target of shape \(3,\)"):
        loss(out, target[:3])
