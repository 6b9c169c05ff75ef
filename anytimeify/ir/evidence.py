"""Data that a transform is given to look at a backbone on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn

from anytimeify.errors import ArgumentError

__all__ = ["MOST", "Evidence"]

MOST = 32  # batches that are read


@dataclass(frozen=True)
class Evidence:
    """Batches of inputs and targets, as a data loader gives them, and the loss that the network is to be trained with,
    which is called with the backbone's prediction as the only level."""

    batches: Iterable[Any]
    loss: nn.Module

    def read(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The first 32 batches. Raises `ArgumentError`, a `TypeError`, for what is no batch."""
        for batch in islice(self.batches, MOST):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ArgumentError(
                    f"batches: expected pairs (inputs, target), as a data loader gives; got {type(batch)}"
                )
            inputs, target = batch
            given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
            if not given or not all(isinstance(one, Tensor) for one in given):
                raise ArgumentError("batches: the inputs of a batch are a tensor, or several in a tuple")
            yield given, target
