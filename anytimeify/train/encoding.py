"""Recipes as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from anytimeify.errors import ArgumentValueError
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther, Order, Sandwich, Together
from anytimeify.train.phases import Phase, Teacher
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["as_json", "flat", "training_of"]

_ORDERS: dict[str, type[Order]] = {"together": Together, "one after the other": OneAfterTheOther, "sandwich": Sandwich}


def as_json(training: Training) -> dict[str, Any]:
    """A recipe as what `json` writes: a field each, an order by its name and its fields."""
    return asdict(training)


def training_of(value: Mapping[str, Any]) -> Training:
    """The recipe that `as_json` gave, with tuples and numbers as they were.

    Raises `ArgumentValueError` for fields that no recipe has, that are missing, or whose values are out of range."""
    training: Training = _built(Training, "the training", value)
    return training


def _built(kind: type[Any], what: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ArgumentValueError(f"{what} is {value!r}: expected fields and their values")
    known = {one.name for one in fields(kind) if one.init}
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ArgumentValueError(f"{what} has no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    given = {name: _field(name, one) for name, one in value.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise ArgumentValueError(f"{what} cannot be made of {', '.join(value) or 'nothing'}: {error}") from error


def _field(name: str, value: Any) -> Any:
    """A field as its class has it."""
    if value is None:
        return None
    if name == "order":
        return _order(value)
    if name == "phases":
        if not isinstance(value, list | tuple):
            raise ArgumentValueError(f"phases is {value!r}: expected a list of phases, each fields and their values")
        return tuple(_built(Phase, "a phase", one) for one in value)
    kinds = {"optimiser": Optimiser, "schedule": Schedule, "teacher": Teacher}
    if name in kinds:
        return _built(kinds[name], f"the {name}", value)
    return tuple(value) if isinstance(value, list) else value


def _order(value: Any) -> Order:
    given = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = given.pop("name", None)
    if name not in _ORDERS:
        raise ArgumentValueError(f"the order is {name!r}: expected one of {', '.join(_ORDERS)}")
    order: Order = _built(_ORDERS[name], f"the order {name!r}", given)
    return order


def flat(value: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Nested dicts as one, with names such as `training.batch`."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= flat(one, f"{name}{key}.") if isinstance(one, dict) else {f"{name}{key}": one}
    return found
