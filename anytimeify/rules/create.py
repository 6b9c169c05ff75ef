"""Operations that make tensors. Filled tensors have open axes, which follow what they meet; counted ones (arange) are
pinned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from anytimeify.factors import Pin
from anytimeify.rules.op import Dims, Op, Resize, opaque_results
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


def _filled(op: Op) -> Dims:
    return tuple(op.open(size) for size in op.type().shape)


def _size(r: Resize) -> dict[str, Any]:
    return {"size": r.shape_argument(r.arguments["size"], r.node.meta["type"].shape, r.types[r.node].shape)}


FILLED = "zeros ones full empty new_zeros new_ones new_full new_empty"
axis_rule(aten(*FILLED.split()), _filled, literals=_size, kind="factory")
axis_rule(aten("rand", "randn"), _filled, literals=_size, kind="random")


def _counted(op: Op) -> Any:
    return opaque_results(op.node, Pin("counts positions", op.where, "position"))


COUNTED = "arange linspace logspace eye tril_indices triu_indices scalar_tensor hann_window"
axis_rule(aten(*COUNTED.split()), _counted, kind="factory")
axis_rule(aten("randint", "randperm"), _counted, kind="random")
axis_rule(torch.ops.aten.sym_size.int, _counted, kind="size")


# the grid of positions, and triangular masks
def _meshgrid(op: Op) -> Any:
    for operand in op.operands():
        for expr in op.axes(operand):
            op.pin(expr, "a grid of positions", "position")
    return opaque_results(op.node, Pin("a grid of positions", op.where, "position"))


axis_rule(aten("meshgrid"), _meshgrid)


def _triangle(op: Op) -> Dims:
    x = op.axes(op["self"])
    for expr in x[-2:]:
        op.pin(expr, "a triangle of positions", "position")
    return x


def _last_two(node: fx.Node) -> range:
    rank = len(node.meta["type"].shape)
    return range(rank - 2, rank)


axis_rule(aten("tril.default", "triu.default"), _triangle, placed=_last_two)
