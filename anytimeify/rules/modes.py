"""What training computes besides: choices by the mode, updates of buffers, calls of autograd functions."""

from __future__ import annotations

import torch
from torch import nn

from anytimeify.derivatives import AutogradFunction
from anytimeify.modes import (
    AFTER,
    BUFFER_BEFORE,
    BY_MODE,
    UPDATE_BUFFER,
    After,
    BufferBefore,
    BufferUpdate,
    ByMode,
)
from anytimeify.rules.lifting import Lifting, Made, Shapes, Values, by_mode
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.pointwise import pointwise
from anytimeify.rules.table import axis_rule


def _first(op: Op) -> Dims:
    return op.axes(op["x"])


# the axes of the operations that compute the same without the function
def _autograd_function(op: Op) -> tuple[Dims, ...]:
    return tuple(op.axes(node) for node in op["traced"])


def _module(kind: type[nn.Module], *inputs: str) -> Lifting:
    def read(values: Values, shapes: Shapes) -> Made:
        return kind, {"write": values["write"]} if "write" in values else {}

    return by_mode(read, *inputs)


axis_rule(BY_MODE, pointwise, kind="choice", evaluation="evaluation", module=_module(ByMode, "training", "evaluation"))
axis_rule(
    UPDATE_BUFFER,
    pointwise,
    kind="choice",
    evaluation="buffer",
    writes="buffer",
    module=_module(BufferUpdate, "buffer", "value"),
)
axis_rule(AFTER, _first, kind="mode", evaluation="x", module=_module(After, "x", "updates"))
axis_rule(BUFFER_BEFORE, pointwise, kind="mode", module=_module(BufferBefore, "buffer"))


def _function_module(values: Values, shapes: Shapes) -> Made:
    return AutogradFunction, {"function": values["function"]}


axis_rule(
    torch.ops.anytimeify.autograd_function.default,
    _autograd_function,
    kind="autograd function",
    module=by_mode(_function_module, "inputs"),
)
