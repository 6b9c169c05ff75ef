"""Objectives for labels of several granularities, and for a consensus."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify import Outputs, Taxonomy
from anytimeify.losses import (
    ConsensusLoss,
    HierarchicalCoDistillation,
    HierarchicalMimicking,
    InPlaceDistillation,
    JointLoss,
    TaxonomyLoss,
)
from tests.rounding import close

TAXONOMY = Taxonomy.from_parents([0, 0, 1, 2, 2], [0, 0, 1])
TARGET = torch.tensor([0, 3, 4, 2])
LABELS = TAXONOMY.targets(TARGET)


def prediction(*granularities: int, shape: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    return tuple(torch.randn(4, TAXONOMY.sizes[place], *shape) for place in granularities or range(3))


def together(levels: Iterable[Any], members: Iterable[Any] = ()) -> Any:
    """Outputs whose levels are tuples of predictions."""
    return Outputs(tuple(levels), tuple(members))


def outputs(levels: int = 2, members: int = 0) -> Any:
    return together((prediction() for _ in range(levels)), (prediction() for _ in range(members)))


def test_the_sum_over_levels_and_granularities() -> None:
    out = outputs()
    loss = TaxonomyLoss(JointLoss(), TAXONOMY)
    terms = loss.terms(out, TARGET)
    assert set(terms) == {f"{name}/level{k}/cross_entropy" for name in ("fine", "middle", "coarse") for k in range(2)}
    expected = sum(F.cross_entropy(level[d], LABELS[d]) for level in out.levels for d in range(3))
    torch.testing.assert_close(loss(out, TARGET), expected)
    torch.testing.assert_close(terms["middle/level1/cross_entropy"], F.cross_entropy(out.levels[1][1], LABELS[1]))


def test_labels_of_every_granularity_may_be_given() -> None:
    out, loss = outputs(), TaxonomyLoss(JointLoss(), TAXONOMY)
    assert torch.equal(loss(out, LABELS), loss(out, TARGET))
    other = (LABELS[0], LABELS[1], 1 - LABELS[2])
    assert not torch.equal(loss(out, other), loss(out, TARGET))


def test_dense_predictions_and_labels_that_do_not_count() -> None:
    out = together([prediction(shape=(2, 3))])
    target = torch.randint(5, (4, 2, 3))
    target[0] = -100
    expected = sum(F.cross_entropy(out.levels[0][d], one) for d, one in enumerate(TAXONOMY.targets(target)))
    torch.testing.assert_close(TaxonomyLoss(JointLoss(), TAXONOMY)(out, target), expected)


def test_weights_and_objectives_of_granularities() -> None:
    out = outputs()
    weighted = TaxonomyLoss(JointLoss(), TAXONOMY, weights=(0.5, 0.0, 2.0)).terms(out, TARGET)
    plain = TaxonomyLoss(JointLoss(), TAXONOMY).terms(out, TARGET)
    for name, weight in (("fine", 0.5), ("middle", 0.0), ("coarse", 2.0)):
        key = f"{name}/level0/cross_entropy"
        torch.testing.assert_close(weighted[key], weight * plain[key])
    each = {"fine": InPlaceDistillation(), "middle": JointLoss(), "coarse": JointLoss((0.2, 0.8))}
    terms = TaxonomyLoss(each, TAXONOMY).terms(out, TARGET)
    assert "fine/level0/distillation" in terms
    torch.testing.assert_close(terms["coarse/level1/cross_entropy"], 0.8 * plain["coarse/level1/cross_entropy"])


def test_members_are_of_every_granularity_too() -> None:
    out = outputs(levels=2, members=2)
    terms = TaxonomyLoss(HierarchicalCoDistillation(), TAXONOMY).terms(out, TARGET)
    own = HierarchicalCoDistillation().terms(
        Outputs(tuple(level[1] for level in out.levels), tuple(member[1] for member in out.members)), LABELS[1]
    )
    for name, value in own.items():
        torch.testing.assert_close(terms[f"middle/{name}"], value)


def test_levels_that_do_not_have_every_granularity_keep_their_numbers() -> None:
    loss = TaxonomyLoss(HierarchicalMimicking(), TAXONOMY)
    loss.bind(TAXONOMY, [[2], [0], [0, 2]])
    out = together([prediction(2), prediction(0), prediction(0, 2)])
    assert set(loss.terms(out, TARGET)) == {
        "fine/level1/cross_entropy",
        "fine/level2/cross_entropy",
        "fine/level1/mimicking/level2",
        "fine/level2/mimicking/level1",
        "coarse/level0/cross_entropy",
        "coarse/level2/cross_entropy",
        "coarse/level0/mimicking/level2",
        "coarse/level2/mimicking/level0",
    }


def test_levels_one_at_a_time_add_up() -> None:
    loss = TaxonomyLoss(JointLoss(reduction="mean"), TAXONOMY)
    loss.bind(TAXONOMY, [[2], [0], [0, 2]])
    out = together([prediction(2), prediction(0), prediction(0, 2)])
    one_by_one: dict[str, Tensor] = {}
    for index, level in enumerate(out.levels):
        one_by_one |= loss.level_terms(index, 3, level, TARGET)
    terms = loss.terms(out, TARGET)
    assert set(one_by_one) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(one_by_one[name], value)


def test_an_objective_that_names_no_terms() -> None:
    class Plain(nn.Module):
        def forward(self, outputs: Outputs, target: Tensor) -> Tensor:
            return F.cross_entropy(outputs.levels[-1], target)

    out = outputs()
    terms = TaxonomyLoss(Plain(), TAXONOMY).terms(out, TARGET)
    assert list(terms) == ["fine/loss", "middle/loss", "coarse/loss"]


def test_drawing_anew_reaches_the_base() -> None:
    base = HierarchicalMimicking(sampling="bernoulli")
    loss = ConsensusLoss(TaxonomyLoss(base, TAXONOMY))
    out = outputs(levels=3)
    loss(out, TARGET)
    torch.manual_seed(0)
    before = base.gates
    drawn = []
    for _ in range(20):
        loss.resample()
        assert base.gates is not None
        drawn.append(base.gates)
    assert before is not None
    assert any(not torch.equal(before, gates) for gates in drawn)


def test_it_moves_and_is_copied_but_saves_nothing() -> None:
    loss = TaxonomyLoss(JointLoss(), TAXONOMY)
    assert not loss.state_dict()
    out = outputs()
    assert close(copy.deepcopy(loss)(out, TARGET), loss(out, TARGET))
    assert "granularities=fine, middle, coarse" in repr(loss)


@pytest.mark.parametrize(
    ("make", "target", "message"),
    [
        (lambda: (TaxonomyLoss(JointLoss()), outputs()), TARGET, "knows no taxonomy"),
        (lambda: (TaxonomyLoss(JointLoss(), TAXONOMY), Outputs((torch.randn(4, 5),))), TARGET, "a single prediction"),
        (lambda: (TaxonomyLoss(JointLoss(), TAXONOMY), together([prediction(0)])), TARGET, "1 predictions"),
        (lambda: (TaxonomyLoss(JointLoss(), TAXONOMY), outputs()), LABELS[:2], "labels of 2 granularities"),
        (lambda: (TaxonomyLoss(JointLoss(), TAXONOMY, weights=(1, 1)), None), TARGET, "weights has 2 entries"),
        (lambda: (TaxonomyLoss(JointLoss(), weights=(-1,)), None), TARGET, "none negative"),
        (lambda: (TaxonomyLoss({"fine": JointLoss()}, TAXONOMY), None), TARGET, "no objective for 'middle'"),
        (lambda: (ConsensusLoss(JointLoss()), outputs(levels=2)), TARGET, "2 levels"),
    ],
)
def test_what_is_refused(make: Any, target: Any, message: str) -> None:
    def run() -> None:
        loss, out = make()
        loss(out, target)

    with pytest.raises(ValueError, match=message):
        run()


def test_the_consensus_is_no_level_of_the_base() -> None:
    levels = tuple(torch.randn(4, 5) for _ in range(3))
    loss = ConsensusLoss(InPlaceDistillation(), weight=0.5)
    terms = loss.terms(Outputs(levels), TARGET)
    torch.testing.assert_close(terms.pop("consensus/cross_entropy"), 0.5 * F.cross_entropy(levels[2], TARGET))
    assert {name: float(value) for name, value in terms.items()} == {
        name: float(value) for name, value in InPlaceDistillation().terms(Outputs(levels[:2]), TARGET).items()
    }
    assert list(ConsensusLoss(JointLoss(), 0).terms(Outputs(levels), TARGET)) == [
        "level0/cross_entropy",
        "level1/cross_entropy",
    ]


def test_the_consensus_of_a_taxonomy_is_of_the_finest_labels() -> None:
    out = outputs(levels=3)
    loss = ConsensusLoss(TaxonomyLoss(JointLoss(), TAXONOMY))
    for target in (TARGET, LABELS):
        term = loss.terms(out, target)["consensus/cross_entropy"]
        torch.testing.assert_close(term, F.cross_entropy(out.levels[2][0], TARGET))
    one_by_one = [loss.level_terms(k, 3, out.levels[k], TARGET) for k in range(3)]
    torch.testing.assert_close(sum(value for one in one_by_one for value in one.values()), loss(out, TARGET))
