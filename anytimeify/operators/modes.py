"""What training and evaluation compute differently, as operations of the canonical form and the modules they become.

| operation | in training | in eval mode |
|---|---|---|
| `by_mode(training, evaluation)` | the first | the second |
| `update_buffer(buffer, value, write)` | `value`; with `write` the buffer becomes it | the buffer as it is |
| `after(x, updates)` | `x`; the updates are made | `x` |
| `buffer_before(buffer)` | a copy, made before the buffer is written to | the buffer itself |

They are written in their training form, as batch norm and dropout are; `anytimeify.passes.rewrites.evaluate` gives the
other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anytimeify.operators.modules import LIBRARY

__all__ = ["AFTER", "BUFFER_BEFORE", "BY_MODE", "UPDATE_BUFFER", "After", "BufferBefore", "BufferUpdate", "ByMode"]

LIBRARY.define("by_mode(Tensor training, Tensor evaluation) -> Tensor")
LIBRARY.define("update_buffer(Tensor buffer, Tensor value, bool write=True) -> Tensor")
LIBRARY.define("after(Tensor x, Tensor[] updates) -> Tensor")
LIBRARY.define("buffer_before(Tensor buffer) -> Tensor")


def _by_mode(training: Tensor, evaluation: Tensor) -> Tensor:
    return training.view_as(training)


def _update_buffer(buffer: Tensor, value: Tensor, write: bool = True) -> Tensor:
    return value.detach()


def _after(x: Tensor, updates: Sequence[Tensor]) -> Tensor:
    return x.view_as(x)


def _buffer_before(buffer: Tensor) -> Tensor:
    return buffer.clone()


# Made of differentiable operations: autograd and export see through them.
LIBRARY.impl("by_mode", _by_mode, "CompositeImplicitAutograd")
LIBRARY.impl("update_buffer", _update_buffer, "CompositeImplicitAutograd")
LIBRARY.impl("after", _after, "CompositeImplicitAutograd")
LIBRARY.impl("buffer_before", _buffer_before, "CompositeImplicitAutograd")

BY_MODE = torch.ops.anytimeify.by_mode.default
UPDATE_BUFFER = torch.ops.anytimeify.update_buffer.default
AFTER = torch.ops.anytimeify.after.default
BUFFER_BEFORE = torch.ops.anytimeify.buffer_before.default


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
            # Not counted as a change of what was saved for the backward pass: that is a copy, where it matters.
            buffer.data.copy_(value)
        return value

    def extra_repr(self) -> str:
        return f"write={self.write}"


class BufferBefore(nn.Module):
    """The value of a buffer before a forward pass writes to it."""

    def forward(self, buffer: Tensor) -> Tensor:
        return buffer.clone() if self.training else buffer


class After(nn.Module):
    """Its first argument; the others are made before it is."""

    def forward(self, x: Tensor, updates: Sequence[Tensor]) -> Tensor:
        return x
