"""The exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.train.checkpoint_shapes import check_average
from anytimeify.train.distribution import spread

__all__ = ["Average"]


class Average:
    """The average of the floating parameters and buffers of a network over the steps so far: after each, what there is
    counts `decay`, and less at the start, (1 + steps) / (10 + steps)."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._own = [tensor for tensor in _tensors(net) if tensor.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._own]

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimiser."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, own in zip(self._average, self._own, strict=True):
            average.lerp_(own.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average inside, and its own weights afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the weights."""
        for average, own in zip(self._average, self._own, strict=True):
            before = own.detach().clone()
            own.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps, "average": list(self._average)}

    def check(self, state: Mapping[str, Any]) -> None:
        """`ValueError` where a state is not of these tensors."""
        check_average(self._average, state["average"])

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.steps = int(state["steps"])  # type: ignore[call-overload]  # as it was written
        for average, given in zip(self._average, state["average"], strict=True):  # type: ignore[call-overload]
            average.copy_(spread(given, average))


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
