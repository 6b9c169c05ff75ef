"""Norms of all levels of a triangular network as one operation.

y0 = layer_norm(slice(x, 1, 0, 2), [2])         ->      y = prefix_norm(x, [2, 4])
y = cat([y0, slice(layer_norm(x, [4]), 1, 2, 4)], 1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.ir import Size
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.kernels.norms_together import is_regular
from anytimeify.kernels.prefix_norm import PREFIX_GROUP_NORM, PREFIX_NORM, PREFIX_STANDARDISE
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence
from anytimeify.rules.norm import is_centred

__all__ = ["prefix_norm"]

Found: TypeAlias = tuple[OpOverload, dict[str, Any]]
"""An operation and its arguments."""

aten = torch.ops.aten


def prefix_norm(dependence: BlockTriangularDependence, node: fx.Node, level: int) -> Found | None:
    """The operation for a norm up to a level, and its arguments:

    1. a layer norm or RMS norm of the last dimension alone;
    2. a group norm of one group;
    3. weight standardisation: a batch norm of one sample, without statistics of its own, of which outputs and inputs
       differ between levels.

    None for every other operation, where a bias comes without a weight, what reads a separate value for each level, and
    levels whose channels are not neighbours or have sizes without a large common part.
    """
    form = _FORMS.get(node.target)
    if form is None or any(source in dependence.separate for source in node.all_input_nodes):
        return None
    values = bound(node)
    if values.get("bias") is not None and values["weight"] is None:
        return None
    return form(_Levels(dependence, node, level), values)


class _Levels:
    """Where the levels of a norm end."""

    def __init__(self, dependence: BlockTriangularDependence, node: fx.Node, level: int) -> None:
        self.dependence, self.node, self.level = dependence, node, level
        self.narrowed, self.rank = dependence.narrowed_dims(node), len(dependence.axes.dims[node])

    def ends(self, dim: int) -> list[int] | None:
        """Of every level; None where their channels are not neighbours, or the first has none."""
        expr = self.dependence.axes.dims[self.node][dim]
        chunks = self.dependence.chunks(expr)[self.dependence.kept(expr, self.level)]
        if (np.diff(chunks) < 0).any() or chunks[0]:
            return None
        return [int(end) for end in np.searchsorted(chunks, range(self.level + 1), side="right")]


def _last_dimension(levels: _Levels, values: Mapping[str, Any]) -> Found | None:
    if levels.narrowed != [levels.rank - 1] or len(values["normalized_shape"]) != 1:
        return None
    ends = levels.ends(levels.rank - 1)
    if ends is None or not is_regular(ends := list(dict.fromkeys(ends))):
        return None
    eps = values["eps"] if values["eps"] is not None else torch.finfo(type_of(levels.node).dtype).eps
    given = {"input": values["input"], "weight": values["weight"], "bias": values.get("bias")}
    return PREFIX_NORM, {**given, "ends": ends, "eps": eps, "centred": is_centred(levels.node.target)}


def _one_group(levels: _Levels, values: Mapping[str, Any]) -> Found | None:
    if levels.narrowed != [1] or values["num_groups"] != 1:
        return None
    ends = levels.ends(1)
    if ends is None or not is_regular(ends := list(dict.fromkeys(ends))):
        return None
    given = {name: values[name] for name in ("input", "weight", "bias", "eps")}
    return PREFIX_GROUP_NORM, {**given, "ends": ends}


def _standardised(levels: _Levels, values: Mapping[str, Any]) -> Found | None:
    shape = type_of(levels.node).shape
    if levels.narrowed != [1, 2] or len(shape) != 3 or shape[0] != Size(1):
        return None
    if values["training"] is not True or values["running_mean"] is not None:
        return None
    rows, ends = levels.ends(1), levels.ends(2)
    if rows is None or ends is None or not is_regular(ends):
        return None
    given = {name: values[name] for name in ("input", "weight", "bias", "eps")}
    return PREFIX_STANDARDISE, {**given, "rows": rows, "ends": ends}


_FORMS: Mapping[object, Callable[[_Levels, Mapping[str, Any]], Found | None]] = {
    aten.layer_norm.default: _last_dimension,
    aten.rms_norm.default: _last_dimension,
    aten.group_norm.default: _one_group,
    aten.batch_norm.default: _standardised,
}
