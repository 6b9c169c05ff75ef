"""What training and evaluation compute differently, as operations of the canonical form and the modules they become.

| operation | in training | in eval mode |
|---|---|---|
| `by_mode(training, evaluation)` | the first | the second |
| `update_buffer(buffer, value, write)` | `value`; with `write` the buffer becomes it | the buffer as it is |
| `after(x, updates)` | `x`; the updates are made | `x` |

They are written in their training form, as batch norm and dropout are; `anytimeify.passes.evaluate` gives the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anytimeify.modules import LIBRARY

__all__ = ["AFTER", "BY_MODE", "UPDATE_BUFFER", "After", "BufferUpdate", "ByMode"]

LIBRARY.define("by_mode(Tensor training, Tensor evaluation) -> Tensor")
LIBRARY.define("update_buffer(Tensor buffer, Tensor value, bool write=True) -> Tensor")
LIBRARY.define("after(Tensor x, Tensor[] updates) -> Tensor")


def _by_mode(training: Tensor, evaluation: Tensor) -> Tensor:
    return training.view_as(training)


def _update_buffer(buffer: Tensor, value: Tensor, write: bool = True) -> Tensor:
    return value.detach()


def _after(x: Tensor, updates: Sequence[Tensor]) -> Tensor:
    return x.view_as(x)


# Made of differentiable operations: autograd and export see through them.
LIBRARY.impl("by_mode", _by_mode, "CompositeImplicitAutograd")
LIBRARY.impl("update_buffer", _update_buffer, "CompositeImplicitAutograd")
LIBRARY.impl("after", _after, "CompositeImplicitAutograd")

BY_MODE = torch.ops.anytimeify.by_mode.default
UPDATE_BUFFER = torch.ops.anytimeify.update_buffer.default
AFTER = torch.ops.anytimeify.after.default


class ByMode(nn.Module):
    """One value in training, another in eval mode."""

    def forward(self, training: Tensor, evaluation: Tensor) -> Tensor:
        return training if self.training else evaluation


class BufferUpdate(nn.Module):
    """The value of a buffer after a forward pass, which writes to it in training."""

    def __init__(self, write: bool = True) -> None:
        super().__init__()
        self.write = write

    def forward(self, buffer: Tensor, value: Tensor) -> Tensor:
        if not self.training:
            return buffer
        value = value.detach()
        if self.write:
            # What was computed from the buffer before may have saved it for its backward pass; `.data` keeps the write
            # from counting as a change of that, which is as the backbone has it under `torch.no_grad`.
            buffer.data.copy_(value)
        return value

    def extra_repr(self) -> str:
        return f"write={self.write}"


class After(nn.Module):
    """Its first argument; the others are made before it is."""

    def forward(self, x: Tensor, updates: Sequence[Tensor]) -> Tensor:
        return x
