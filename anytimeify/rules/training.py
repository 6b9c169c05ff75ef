"""What training changes in a call, read off the schemas of operations, whether they have a rule or not."""

from __future__ import annotations

import torch
from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.ir.schema import bound, parameters

__all__ = ["draws", "is_random", "told_by_mode", "training_flag", "trains"]

_FLAGS = ("training", "train", "use_input_stats")  # as the schemas of ATen call it
_PROBABILITIES = ("dropout_p",)  # of a dropout inside an operation, zero in eval mode


def training_flag(target: object) -> str | None:
    """The argument that says whether an operation trains."""
    names = parameters(target) if isinstance(target, OpOverload) else ()
    return next((name for name in names if name in _FLAGS), None)


def told_by_mode(argument: str) -> bool:
    """Whether an argument of this name may differ between train mode and eval mode, where the rest is the same."""
    return argument in (*_FLAGS, *_PROBABILITIES, "momentum")


def trains(node: fx.Node) -> bool:
    """Whether the arguments of a call say that it trains."""
    flag, given = training_flag(node.target), bound(node)
    return (flag is not None and given[flag] is True) or any(given.get(one) for one in _PROBABILITIES)


def is_random(target: object) -> bool:
    """Whether calls of an operation may draw random numbers."""
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def draws(node: fx.Node) -> bool:
    """Whether a call draws random numbers: an operation that may, and whose arguments do not switch that off."""
    if not is_random(node.target):
        return False
    given = bound(node)
    return given.get(training_flag(node.target) or "") is not False and all(given.get(p) != 0 for p in _PROBABILITIES)
