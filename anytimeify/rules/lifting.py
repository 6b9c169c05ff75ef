"""Which module of `torch.nn`, or of ours, computes an operation: a `Lifting` is part of the operation's rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

__all__ = ["STATISTICS", "WEIGHT_BIAS", "Lifting", "Shapes", "by_mode", "of_tensors", "plain", "plain_value", "take"]

Values: TypeAlias = dict[str, Any]
Made: TypeAlias = tuple[type[nn.Module], dict[str, Any]]
WEIGHT_BIAS = {"weight": "weight", "bias": "bias"}
STATISTICS = {"running_mean": "running_mean", "running_var": "running_var"}


@dataclass(frozen=True)
class Shapes:
    """Sizes of the tensor arguments of a call, by argument name; `rank` is that of its first argument; `training`
    tells whether the module belongs to a graph that trains."""

    sizes: Mapping[str, tuple[int, ...]]
    rank: int
    training: bool

    @property
    def first_size(self) -> int:
        return next(iter(self.sizes.values()))[0]


@dataclass(frozen=True)
class Lifting:
    """A module that computes a call.

    `read` gives its class and the arguments that it is made with, or None where no module computes the call; `inputs`
    are the arguments that it is called with. It is found in one of three ways:

    1. `tensors` (argument -> attribute): the call reads those of one path, which becomes the module's;
    2. otherwise the call came out of a module of that very class;
    3. with `by_mode` the call differs between training and evaluation, and is a module in any case in a graph that
       trains: the module that it came out of, if its class has one of the names `classes` in it.
    """

    read: Callable[[Values, Shapes], Made | None]
    inputs: tuple[str, ...] = ("input",)
    tensors: Mapping[str, str] = field(default_factory=dict)
    by_mode: bool = False
    classes: tuple[str, ...] = ()


def of_tensors(
    read: Callable[[Values, Shapes], Made | None], tensors: Mapping[str, str] = WEIGHT_BIAS, *inputs: str
) -> Lifting:
    """The module that has the tensors which a call reads."""
    return Lifting(read, inputs or ("input",), tensors)


def plain(kind: type[nn.Module], config: Callable[[Values], dict[str, Any] | None] | None = None) -> Lifting:
    """A module without tensors, which a call came out of. An operation alone does not tell its module: ReLU6 and
    Hardtanh are both `hardtanh`."""

    def read(values: Values, shapes: Shapes) -> Made | None:
        found = {} if config is None else config(values)
        return None if found is None else (kind, found)

    return Lifting(read, ())


def by_mode(read: Callable[[Values, Shapes], Made | None], *inputs: str, classes: tuple[str, ...] = ()) -> Lifting:
    """A module that computes one thing in training and another in eval mode."""
    return Lifting(read, inputs, by_mode=True, classes=classes)


def take(**names: str) -> Callable[[Values], dict[str, Any] | None]:
    """The arguments of a module, each by that of the operation."""
    return lambda values: {attribute: plain_value(values[argument]) for attribute, argument in names.items()}


def plain_value(value: Any) -> Any:
    """An argument of an operation as modules take it: lists are tuples."""
    return tuple(value) if isinstance(value, (list, tuple)) else value
