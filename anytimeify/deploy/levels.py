"""What goes into one file: levels, each as its extract, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.inputs import CallInputs
from anytimeify.ir import Level
from anytimeify.storage.export import cases, compare
from anytimeify.storage.flat_outputs import tensors_of

__all__ = ["Levels"]


@dataclass(frozen=True)
class Levels:
    """Levels for one file, the cheapest first; their numbers in the file are their places here."""

    levels: tuple[Level, ...]
    extracts: Sequence[nn.Module]
    inputs: CallInputs
    dynamic_batch: bool
    scheme: str
    batch: tuple[int, int | None] | None  # the sizes that a batch may have; None where its size is fixed

    def fixed(self) -> Levels:
        """The same levels where a file takes batches of one size."""
        return replace(self, dynamic_batch=False, batch=None)

    def verify(self, path: str, run: Callable[[int, CallInputs], Any], inputs: CallInputs) -> None:
        """Compares a file with the extracts. `run(place, inputs)` gives what the file computes for a level.

        Raises `VerificationError`."""
        for place, module in enumerate(self.extracts):
            for case in cases(inputs, self.dynamic_batch):
                with torch.inference_mode():
                    expected: list[Tensor] = tensors_of(module(*case.args, **case.kwargs))
                    compare(path, case.tensors, expected, tensors_of(run(place, case)))
