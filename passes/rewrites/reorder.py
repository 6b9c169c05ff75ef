"""`reorder`: sort the channels of axis groups by importance. The function stays the same.

    y = linear(relu(linear(x, w)), v)       ->      y = linear(relu(linear(x, w[order])), v[:, order])

1. Every narrowable axis group gets an importance per unit (a channel, a whole group, a whole head): the l1 norm of all
   the weights that belong to it.
2. Its units are sorted, the most important first, and every parameter and buffer of the group is permuted alike.

The graph stays; only tensors change. Left as they are: groups whose order an operation fixes (a channel shuffle), and
parameters whose dimensions are pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anytimeify.analysis.axes import Axes, arrangement
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Captured, Program
from anytimeify.rules.factors import Expr, Factor, Sum, leaves

__all__ = ["reorder", "units_of"]


@rewrite("reorder")
def reorder(captured: Captured, axes: Axes, where: str | Sequence[str] = "all") -> Captured:
    """The captured model with its channels sorted by the l1 norm of their weights; tensors are new, the given ones
    untouched.
    """
    program = captured.program
    groups = [group for group in axes.chosen(where) if group.ordered is None]
    orders: dict[Factor, npt.NDArray[np.int64]] = {}
    importance = _importance(program, axes, {group.factor for group in groups})
    for group in groups:
        if group.factor in importance:
            orders[group.factor] = np.argsort(-importance[group.factor], kind="stable")
    return replace(captured, program=_permuted(program, axes, orders))


def _importance(program: Program, axes: Axes, chosen: set[Factor]) -> dict[Factor, npt.NDArray[np.float64]]:
    totals: dict[Factor, npt.NDArray[np.float64]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = program.tensors[str(node.target)]
        if not program.is_parameter(str(node.target)) or tensor.ndim < 2:
            continue
        for dim, expr in enumerate(axes.dims[node]):
            for factor in {leaf for leaf in leaves(expr) if leaf in chosen}:
                norms = tensor.detach().abs().to(torch.float64)
                weights = norms.sum([d for d in range(tensor.ndim) if d != dim]).cpu().numpy()
                units = units_of(expr, factor)
                total = np.bincount(units[units >= 0], weights[units >= 0], minlength=factor.size.coefficient)
                totals[factor] = totals.get(factor, np.zeros(factor.size.coefficient)) + total
    return totals


def units_of(expr: Expr, factor: Factor) -> npt.NDArray[np.int64]:
    """Which unit of a factor each element of a dimension belongs to; -1 where it belongs to none."""
    if isinstance(expr, Factor):
        count = expr.size.coefficient
        return np.arange(count) if expr is factor else np.full(count, -1, dtype=np.int64)
    if isinstance(expr, Sum):
        return np.concatenate([units_of(part, factor) for part in expr.parts])
    units = np.full(1, -1, dtype=np.int64)
    for part in expr.parts:
        units = np.maximum(units[:, None], units_of(part, factor)[None, :]).reshape(-1)
    return units


def _permuted(program: Program, axes: Axes, orders: dict[Factor, npt.NDArray[np.int64]]) -> Program:
    tensors = dict(program.tensors)
    moved: dict[int, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        tensor = program.tensors[name]
        if not any(leaf in orders for expr in axes.dims[node] for leaf in leaves(expr)):
            continue
        if id(tensor) not in moved:
            part = tensor.detach()
            for dim, expr in enumerate(axes.dims[node]):
                if any(leaf in orders for leaf in leaves(expr)):
                    index = torch.from_numpy(arrangement(expr, orders)).to(tensor.device)
                    part = part.index_select(dim, index)
            parameter = isinstance(tensor, torch.nn.Parameter)
            moved[id(tensor)] = torch.nn.Parameter(part, tensor.requires_grad) if parameter else part
    for name, tensor in program.tensors.items():
        tensors[name] = moved.get(id(tensor), tensor)
    return replace(program, tensors=tensors)
