"""Where layers have their operands: which dimension of a weight meets which of the input, and which of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from anytimeify.node_meta import type_of
from anytimeify.schema import bound

__all__ = ["Blocks", "Operands", "blocks_of", "operands_of"]

aten = torch.ops.aten
Places: TypeAlias = npt.NDArray[np.int64]
Blocks: TypeAlias = tuple[tuple[Places, Places], ...]
"""Of every block, the rows of a weight and the columns that these read."""


@dataclass(frozen=True)
class Operands:
    """`result[rows] = weight[rows, columns] @ input[columns] + bias[rows]`: the arguments by name, and for each the
    dimensions that stand here; negative ones count from the end. The bias has its rows last, or one for all."""

    weight: str
    rows: int  # of the weight
    columns: int
    input: str
    read: int  # the dimension of the input that has the columns
    given: int  # the dimension of the result that has the rows
    bias: str | None = None
    groups: int = 1


def _convolution(positions: int, rows: int) -> tuple[Operands, ...]:
    channels = -(positions + 1)
    return (Operands("weight", rows, 1 - rows, "input", channels, channels, "bias"),)


def _products(left: str, right: str) -> tuple[Operands, ...]:
    """The weight on the right, and on the left."""
    return Operands(right, -1, -2, left, -1, -1), Operands(left, -2, -1, right, -2, -2)


_OPERANDS: dict[Any, tuple[Operands, ...]] = {
    aten.linear.default: (Operands("weight", 0, 1, "input", -1, -1, "bias"),),
    **{getattr(aten, f"conv{n}d").default: _convolution(n, rows=0) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: _convolution(n, rows=0) for n in (1, 2, 3)},
    aten.conv_transpose1d.default: _convolution(1, rows=1),
    aten.conv_transpose2d.input: _convolution(2, rows=1),
    aten.conv_transpose3d.input: _convolution(3, rows=1),
    aten.mm.default: _products("self", "mat2"),
    aten.bmm.default: _products("self", "mat2"),
    aten.matmul.default: _products("self", "other"),
    aten.addmm.default: (Operands("mat2", -1, -2, "mat1", -1, -1, "self"),),
}


def operands_of(node: fx.Node, weight: fx.Node) -> Operands | None:
    """How a layer reads a weight; None where this is not known, and for transposed convolutions with groups."""
    for operands in _OPERANDS.get(node.target, ()):
        values = bound(node)
        other = values[operands.input]
        if values[operands.weight] is not weight or other is weight:
            continue
        groups = values.get("groups", 1)
        if (groups > 1 and operands.rows) or min(len(type_of(one).shape) for one in (weight, other)) < 2:
            return None
        return replace(operands, groups=groups)
    return None


def blocks_of(node: fx.Node, weight: fx.Node, dims: tuple[int, int], blocks: Blocks) -> Blocks:
    """The products that a layer is made of whose weight has nothing but `blocks`, rows and columns counted along the
    dimensions `dims` of it: neighbours that read the same columns are one.

    Empty where the layer is not known, where rows read nothing, and where groups have unequal parts of the rows.
    """
    operands, rank = operands_of(node, weight), len(type_of(weight).shape)
    if operands is None or dims != (operands.rows % rank, operands.columns % rank):
        return ()
    joined: list[tuple[Places, Places]] = []
    for rows, columns in blocks:
        if joined and np.array_equal(joined[-1][1], columns):
            joined[-1] = (np.union1d(joined[-1][0], rows), columns)
        elif len(rows):
            joined.append((rows, columns))
    per_group = sum(len(rows) for rows, _ in joined) // operands.groups
    if any(not len(columns) or not _even(rows // per_group, operands.groups) for rows, columns in joined):
        return ()
    return tuple(joined)


def _even(owners: Places, count: int) -> bool:
    shares = np.bincount(owners, minlength=count)
    return bool(shares.min() == shares.max())
