"""What verification runs on: example inputs with other batch sizes, and everything in double precision."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from anytimeify.capture.compare import tolerance
from anytimeify.ir import Captured, Program, TensorType
from anytimeify.ir.node_meta import type_of

__all__ = ["ADVICE", "TOLERANCE", "cast_limit", "clone", "double", "in_double", "with_batch"]

Module = TypeVar("Module", bound=nn.Module)
TOLERANCE = 1e-5
ADVICE = "Please report this with the model; transform(..., verify=False) skips the check"


def cast_limit(program: Program) -> float:
    """What remains of that where all tensors are in double precision: conversions that the program itself makes."""
    given = (value for node in program.graph.nodes for value in (*node.args, *node.kwargs.values()))
    return max([TOLERANCE, *(tolerance(value) for value in given if isinstance(value, torch.dtype))])


def in_double(module: Module) -> Module:
    """A copy in double precision."""
    wide = copy.deepcopy(module).double()
    for tensor in (*wide.parameters(), *wide.buffers()):
        tensor.data = double(tensor.data)  # `double()` leaves complex ones as they are
    return wide


def double(x: Tensor) -> Tensor:
    """In double precision; integers as they are."""
    if x.is_complex():
        return x.to(torch.complex128)
    return x.double() if x.is_floating_point() else x


def clone(value: Any) -> Any:
    """Copies of tensors: a model may write to its inputs."""
    return fx.node.map_aggregate(value, lambda x: x.clone() if isinstance(x, Tensor) else x)


def with_batch(captured: Captured, inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The inputs as a batch of `count` samples: the first of them, or all again and again."""
    result = []
    for node, x in zip(captured.program.placeholders, inputs, strict=True):
        kind: TensorType = type_of(node)
        for dim, size in enumerate(kind.shape):
            if captured.batch is not None and size.symbols == (captured.batch,):
                rows = torch.arange(size.coefficient * count, device=x.device) % x.shape[dim]
                x = x.index_select(dim, rows)
        result.append(x)
    return tuple(result)
