"""The optimisers of recipes, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from anytimeify.errors import ArgumentValueError
from anytimeify.train.checks import check_fields, check_range

__all__ = ["Optimiser"]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Stochastic gradient descent, or Adam with decoupled weight decay.

    Fields
        learning_rate: what the schedule multiplies.
        weight_decay: of all parameters, or with `decay_all=False` of matrices and kernels alone: not of biases, norms
            and other parameters with one dimension.
        momentum, nesterov: of `"sgd"`.
        betas: of `"adamw"`.
    """

    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = False
    kind: Literal["sgd", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    decay_all: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, 0, "learning_rate", "weight_decay")
        check_range(self, 0, "momentum", most=1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentValueError(f"betas is {self.betas!r}: expected two numbers from 0 on, less than 1")
        if self.kind == "sgd" and self.nesterov and not self.momentum:
            raise ArgumentValueError("nesterov is True, and momentum 0: expected a momentum, or nesterov=false")

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, or parameter groups."""
        given: list[Any] = list(parameters)
        if not self.decay_all:
            given = self._groups(given)
        if self.kind == "adamw":
            return torch.optim.AdamW(given, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            given,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )

    def _groups(self, given: list[Any]) -> list[dict[str, Any]]:
        groups = [dict(one) if isinstance(one, Mapping) else {"params": [one]} for one in given]
        parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        kinds = ({"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim <= 1]})
        kinds[1]["weight_decay"] = 0.0  # type: ignore[assignment]  # a number beside a list
        return [group for group in kinds if group["params"]]
