"""Recipes: what they say of every epoch and phase, as JSON, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify.errors import AnytimeError, ArgumentValueError
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
from anytimeify.train.start import DEFAULT, changed

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
        ({"schedule": {"kind": "sine"}}, "kind is 'sine': expected 'cosine' or"),
        ({"augmentation": "flip"}, "augmentation is 'flip': expected a list, each a text"),
        ({"augmentation": [3]}, "augmentation is"),
        ({"parts": "fc.*"}, "parts is 'fc.*': expected 'all' or 'levels' or 'consensus' or a list, each a text"),
        ({"phases": 3}, "phases is 3: expected a list of phases"),
        ({"phases": [{"epochs": 1, "batch": 0}]}, "batch is 0: expected a whole number, 1 or more"),
        ({"teacher": {"weight": "a"}}, "weight is 'a': expected a number"),
        ({"order": {"name": "sandwich", "random": 1.5}}, "random is 1.5: expected a whole number"),
        ({"order": {"name": "one after the other", "same_batch": 2}}, "same_batch is 2: expected true or false"),
        ({"ema": "a"}, "ema is 'a': expected a number or null"),
        ({"clip": -1.0}, "clip is -1.0: expected a positive number"),
        ({"calibrate": -1}, "calibrate is -1: expected a whole number, 0 or more"),
        ({"workers": -1}, "workers is -1"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0: expected a number, from 0 to 1"),
        ({"frozen_norms": "a"}, "frozen_norms is 'a'"),
        ({"seed": 2**64}, "seed is .*: expected a whole number of 64 bits"),
        ({"seed": 1.5}, "seed is 1.5: expected a whole number"),
    ],
)
def test_recipes_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnytimeError, match=message):
        training_of({**as_json(SMALL), **change})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimiser.learning_rate", -1, "learning_rate is -1: expected a number, 0 or more"),
        ("optimiser.learning_rate", float("nan"), "learning_rate is nan: expected a number"),
        ("optimiser.weight_decay", "a", "weight_decay is 'a': expected a number"),
        ("optimiser.momentum", 2, "momentum is 2: expected a number, from 0 to 1"),
        ("optimiser.betas", [0.9], r"betas is \(0.9,\): expected a list of a number, a number"),
        ("optimiser.betas", [0.9, 1], "betas is .*: expected two numbers from 0 on, less than 1"),
        ("optimiser.nesterov", 3, "nesterov is 3: expected true or false"),
        ("optimiser.momentum", 0, "nesterov is True, and momentum 0"),
        ("schedule.milestones", 3, "milestones is 3: expected a list, each a number"),
        ("schedule.warm_up", -1, "warm_up is -1: expected a number, 0 or more"),
        ("schedule.gamma", "a", "gamma is 'a'"),
        ("schedule.cycle", 0, "cycle is 0: expected a whole number, 1 or more"),
    ],
)
def test_parts_of_recipes_that_are_none(field: str, value: Any, message: str) -> None:
    """Said before anything is trained, and by the name of the field."""
    with pytest.raises(ArgumentValueError, match=f"{field}=.*: {message}"):
        changed(DEFAULT, [f"{field}={json.dumps(value)}"])
