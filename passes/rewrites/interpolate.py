"""A tensor with an element for every position is read at other positions: interpolated, inside the graph.

    y = add(x, table)       ->      y = add(x', upsample(table, [10, 10]))

A table of 14 x 14 positions and a class token, step by step:

    [1, 197, c] -> [1, 1, c] and [1, 196, c]    a class token, and a grid
    [1, 196, c] -> [1, c, 14, 14] -> [1, c, 10, 10] -> [1, 100, c]
    [1, 1, c] and [1, 100, c] -> [1, 101, c]

The axis analysis says which positions a dimension counts: one factor or a product of factors, and in a sum, elements
that are no positions (a class token). Grids of one and three dimensions are interpolated linearly, those of two by
antialiased cubic splines, as vision transformers do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.ir import Program
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.passes.rewrites.input_sizes import Positions
from anytimeify.rules import contractions
from anytimeify.rules.factors import Expr, Factor, Sum, leaves, resolve

__all__ = ["interpolated", "tables"]

aten = torch.ops.aten
Call = Callable[..., fx.Node]  # (operation, arguments, name) -> node
_RESIZE = {1: aten.upsample_linear1d.vec, 2: aten._upsample_bicubic2d_aa.vec, 3: aten.upsample_trilinear3d.vec}


def tables(program: Program, axes: Axes, positions: Positions) -> list[fx.Node]:
    """The tensors of a program that have an element for every position.

    Raises `SchemeError` for those that are more than that: the weight of a layer that reads all positions, an index, a
    mask."""
    found = []
    for node in program.graph.find_nodes(op="get_attr"):
        if not node.users or not any(axes.narrowed(expr, positions.sizes) for expr in axes.dims[node]):
            continue
        layer = next((user for user in node.users if any(one.weight is node for one in contractions(user))), None)
        if layer is not None:
            raise SchemeError(
                f"sizes: {node.target} weighs every position for itself (it is read by {layer.name}, "
                f"{origin_of(layer)}), so this network takes inputs of one size; a pooling before that layer would "
                "let it take others"
            )
        floating = type_of(node).dtype.is_floating_point
        if not floating or any(len(grid) not in _RESIZE for grid in _grids(axes, node, positions)):
            raise SchemeError(
                f"sizes: {node.target} is made for positions of one size and cannot be interpolated, for it is "
                f"{'no grid of positions' if floating else 'an index or a mask'}"
            )
        found.append(node)
    return found


def _grids(axes: Axes, table: fx.Node, positions: Positions) -> Iterator[list[Factor]]:
    """Of every part of a table, the factors that count positions."""
    dims = [positions.grid(expr) for expr in axes.dims[table]]
    for chosen in product(*map(_parts, dims)):
        grid = [leaf for part in chosen if axes.narrowed(part, positions.sizes) for leaf in leaves(resolve(part))]
        if grid:
            yield grid


def _parts(expr: Expr) -> Sequence[Expr]:
    expr = resolve(expr)
    return expr.parts if isinstance(expr, Sum) else (expr,)


def interpolated(call: Call, node: fx.Node, dims: Sequence[Expr], axes: Axes, positions: Positions) -> fx.Node:
    """What reads a table, whose dimensions are `dims`, at the positions of a level."""
    sizes = positions.sizes
    dims = [positions.grid(expr) for expr in dims]
    place = next((dim for dim, one in enumerate(dims) if len(_parts(one)) > 1 and axes.narrowed(one, sizes)), None)
    if place is None:
        return _resize(call, node, dims, axes, sizes)
    results, start = [], 0
    for part in _parts(dims[place]):
        length = axes.size(part, {}).coefficient
        piece = call(aten.slice.Tensor, (node, place, start, start + length), "piece")
        if axes.narrowed(part, sizes):
            piece = interpolated(call, piece, [*dims[:place], part, *dims[place + 1 :]], axes, positions)
        results.append(piece)
        start += length
    return call(aten.cat.default, (results, place), "joined")


def _resize(call: Call, node: fx.Node, dims: Sequence[Expr], axes: Axes, sizes: Widths) -> fx.Node:
    """Positions moved last, resized, and moved back."""
    grid = [leaf for expr in dims if axes.narrowed(expr, sizes) for leaf in leaves(resolve(expr))]
    moved = [dim for dim, expr in enumerate(dims) if axes.narrowed(expr, sizes)]
    order = [*(dim for dim in range(len(dims)) if dim not in moved), *moved]
    shape = [size.coefficient for size in type_of(node).shape]
    new = [axes.size(expr, sizes).coefficient if dim in moved else shape[dim] for dim, expr in enumerate(dims)]
    others = math.prod(shape[dim] for dim in order[: len(dims) - len(moved)])
    target = [sizes.get(leaf, leaf.size.coefficient) for leaf in grid]
    result = call(aten.permute.default, (node, order), "positions_last")
    result = call(aten.reshape.default, (result, [1, others, *(leaf.size.coefficient for leaf in grid)]), "grid")
    result = call(_RESIZE[len(grid)], (result, target, False, None), "interpolated")
    result = call(aten.reshape.default, (result, [new[dim] for dim in order]), "in_a_row")
    return call(aten.permute.default, (result, [order.index(dim) for dim in range(len(dims))]), "positions")
