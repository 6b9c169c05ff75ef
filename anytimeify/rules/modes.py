"""What training computes besides: choices by the mode, updates of buffers, calls of autograd functions."""

from __future__ import annotations

import torch

import anytimeify.derivatives  # noqa: F401  # defines an operation
from anytimeify.modes import AFTER, BY_MODE, UPDATE_BUFFER
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.pointwise import pointwise
from anytimeify.rules.table import axis_rule


def _first(op: Op) -> Dims:
    return op.axes(op["x"])


# the axes of the operations that compute the same without the function
def _autograd_function(op: Op) -> tuple[Dims, ...]:
    return tuple(op.axes(node) for node in op["traced"])


axis_rule([BY_MODE, UPDATE_BUFFER], pointwise)
axis_rule(AFTER, _first)
axis_rule(torch.ops.anytimeify.autograd_function.default, _autograd_function)
