"""`reorder`: sort the channels of axis groups by importance. The function stays the same.

    y = linear(relu(linear(x, w)), v)       ->      y = linear(relu(linear(x, w[order])), v[:, order])

The units (a channel, a whole group, a whole head) of every axis group that has scores are sorted, the highest first,
and every parameter and buffer of the group is permuted alike.

The graph stays; only tensors change. Left as they are: groups whose order an operation fixes (a channel shuffle), and
parameters whose dimensions are pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anytimeify.analysis.axes import Axes, arrangement
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Captured, Program
from anytimeify.rules.factors import Expr, Factor, Sum, leaves

__all__ = ["Scores", "reorder", "units_of"]

Scores: TypeAlias = Mapping[Factor, npt.NDArray[np.float64]]
"""A number for every unit of some axis groups."""


@rewrite("reorder")
def reorder(captured: Captured, axes: Axes, scores: Scores) -> Captured:
    """The captured model with its channels sorted, those of the highest score first; tensors are new, the given ones
    untouched.
    """
    orders = {
        group.factor: np.argsort(-scores[group.factor], kind="stable")
        for group in axes.groups
        if group.factor in scores and group.ordered is None
    }
    return replace(captured, program=_permuted(captured.program, axes, orders))


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
