"""Whether what a checkpoint holds beside the weights has their shapes: looked at before anything changes.

torch loads the state of an optimiser whatever its shapes are, and adds up what can be broadcast at the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_average", "check_optimiser"]

_TOGETHER = frozenset({"step", "exp_avg", "exp_avg_sq"})  # what AdamW keeps of a parameter: all of it, or nothing


def check_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any], net: nn.Module) -> None:
    """`ValueError` where it is of other parameters: of another number in a group, or of other shapes."""
    groups = [len(group["params"]) for group in optimiser.param_groups]
    given = [len(group["params"]) for group in state["param_groups"]]
    if given != groups:
        raise ValueError(f"its optimiser has groups of {given} parameters, and here they have {groups}")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        kept, name = state["state"].get(number, {}), names[id(parameter)]
        if isinstance(optimiser, torch.optim.AdamW) and kept and not kept.keys() >= _TOGETHER:
            raise ValueError(f"its optimiser has no {min(_TOGETHER - kept.keys())} of '{name}'")
        for entry, value in kept.items():
            expected = () if entry == "step" else parameter.shape
            if value is not None and _shape(value) != tuple(expected):
                raise ValueError(
                    f"its optimiser has {_said(value)} as {entry} of '{name}', and one of shape {list(expected)} "
                    "belongs there"
                )


def check_average(own: Sequence[Tensor], given: Sequence[Any]) -> None:
    """`ValueError` where averaged weights are not as many as there are, or of other shapes."""
    for place, (one, value) in enumerate(zip(own, given, strict=True)):
        if _shape(value) != tuple(one.shape):
            raise ValueError(
                f"its averaged weights have {_said(value)} in place {place}, and one of shape {list(one.shape)} "
                "belongs there"
            )


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor, or a number; None of anything else."""
    if isinstance(value, int | float):
        return ()
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _said(value: Any) -> str:
    shape = _shape(value)
    return f"a {type(value).__name__}" if shape is None else f"a tensor of shape {list(shape)}"
