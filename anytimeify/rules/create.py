"""Operations that make tensors. Filled tensors have open axes, which follow what they meet; counted ones (arange) are
pinned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from anytimeify._torch import OpOverload, schema
from anytimeify.factors import Pin
from anytimeify.rules.op import Dims, Op, Resize, opaque_results
from anytimeify.rules.table import axis_rule, has_kind
from anytimeify.rules.targets import aten
from anytimeify.schema import bound

__all__ = ["counts_up", "filled_with", "has_known_values", "is_uninitialised", "like_form"]


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


# the argument that says what a tensor is filled with, or the number
_FILLS: dict[object, str | int] = {
    torch.ops.aten.zeros.default: 0,
    torch.ops.aten.ones.default: 1,
    torch.ops.aten.full.default: "fill_value",
    torch.ops.aten.scalar_tensor.default: "s",
}
# the form that takes its size from a tensor
_LIKE: dict[object, OpOverload] = {
    torch.ops.aten.rand.default: torch.ops.aten.rand_like.default,
    torch.ops.aten.randn.default: torch.ops.aten.randn_like.default,
}


def filled_with(node: fx.Node) -> Any:
    """The number that a tensor is filled with which is made of its size alone; None of other nodes."""
    fill = _FILLS.get(node.target)
    return bound(node)[fill] if isinstance(fill, str) else fill


def counts_up(node: fx.Node) -> bool:
    """Whether a call gives a range of numbers."""
    return has_kind(node, "factory") and schema(node.target).name == "aten::arange"  # type: ignore[arg-type]


_UNINITIALISED = ("aten::empty", "aten::new_empty", "aten::empty_like")


def is_uninitialised(node: fx.Node) -> bool:
    """Whether a call gives memory as it is found."""
    return has_kind(node, "factory") and schema(node.target).name in _UNINITIALISED  # type: ignore[arg-type]


def has_known_values(node: fx.Node) -> bool:
    """Whether what a call gives follows from the sizes and numbers that it is given."""
    return has_kind(node, "factory") and not is_uninitialised(node)


def like_form(target: object) -> OpOverload | None:
    """The operation that draws the same numbers in the shape of a tensor; None where there is none."""
    return _LIKE.get(target)
