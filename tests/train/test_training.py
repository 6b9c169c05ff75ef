"""Recipes: what they say of every epoch and phase, as JSON, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify.errors import AnytimeError
from anytimeify.papers import entries
from anytimeify.train import (
    OneAfterTheOther,
    Optimiser,
    Phase,
    Sandwich,
    Schedule,
    Teacher,
    Training,
    as_json,
    training_of,
)

SMALL = Training(
    data="digits",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(kind="steps", milestones=(1.5,)),
    batch=8,
    epochs=3,
)
FULL = replace(
    SMALL,
    optimiser=Optimiser(kind="adamw", learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95), decay_all=False),
    schedule=Schedule(kind="cosine", per="step", warm_up=1),
    order=Sandwich(random=1),
    augmentation=("pad 4 and crop", "flip"),
    teacher=Teacher(weight=0.9, temperature=4.0),
    phases=(
        Phase(epochs=2, parts="consensus", optimiser=Optimiser(learning_rate=0.1, weight_decay=0.0)),
        Phase(epochs=1, parts=("layer4.*",), order=OneAfterTheOther(), frozen_norms=True),
    ),
    ema=0.99,
    clip=1.0,
)


@pytest.mark.parametrize("training", [SMALL, FULL, *(entry.training for entry in entries())])
def test_recipes_come_back_from_json(training: Training) -> None:
    assert training_of(json.loads(json.dumps(as_json(training)))) == training


def test_phases_are_trainings_of_their_own() -> None:
    first, consensus, last = FULL.stages()
    assert (first.phases, first.epochs, first.teacher) == ((), 3, FULL.teacher)
    assert (consensus.epochs, consensus.parts, consensus.teacher) == (2, "consensus", None)
    assert (consensus.optimiser.learning_rate, consensus.schedule, consensus.batch) == (0.1, FULL.schedule, 8)
    assert (last.order, last.frozen_norms, last.ema) == (OneAfterTheOther(), True, 0.99)
    assert FULL.all_epochs == 6


def test_rates_rise_and_fall_within_epochs() -> None:
    schedule = Schedule(kind="linear", per="step", warm_up=0.5, warm_up_from=0.2)
    found = [schedule.factor(epoch, 4) for epoch in (0, 0.25, 0.5, 2, 3.5)]
    assert found == pytest.approx([0.2, 0.6 * 0.9375, 0.875, 0.5, 0.125])
    by_epoch = replace(schedule, per="epoch", warm_up=0.0)
    assert [by_epoch.factor(epoch, 4) for epoch in (0, 0.9, 1.0, 1.9)] == [1, 1, 0.75, 0.75]
    assert [SMALL.schedule.factor(epoch, 3) for epoch in (1, 1.49, 1.5)] == pytest.approx([1, 1, 0.1])


def test_adam_leaves_norms_and_biases_undecayed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    built = FULL.optimiser.build(net.parameters())
    assert isinstance(built, torch.optim.AdamW)
    decayed, free = built.param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"], free["betas"]) == (0.05, 0.0, (0.9, 0.95))
    assert isinstance(SMALL.optimiser.build(net.parameters()), torch.optim.SGD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0: expected a whole number"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"mixup": -1.0}, "mixup"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"speed": 3}, "the training has no field 'speed'; there are .*, batch,"),
        ({"order": "backwards"}, "the order is 'backwards': expected one of together,"),
        ({"optimiser": 0.1}, "the optimiser is 0.1: expected fields"),
        ({"optimiser": {"learning_rate": 0.1}}, "the optimiser cannot be made of learning_rate: .*weight_decay"),
        ({"schedule": {"kind": "sine"}}, "kind is 'sine'"),
    ],
)
def test_recipes_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnytimeError, match=message):
        training_of({**as_json(SMALL), **change})
