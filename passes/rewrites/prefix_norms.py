"""Norms of all levels of a triangular network as one operation.

y0 = layer_norm(slice(x, 1, 0, 2), [2])         ->      y = prefix_norm(x, [2, 4])
y = cat([y0, slice(layer_norm(x, [4]), 1, 2, 4)], 1)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.kernels.norms_together import is_regular
from anytimeify.kernels.prefix_norm import PREFIX_NORM
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence
from anytimeify.rules.norm import is_centred

__all__ = ["prefix_norm"]


def prefix_norm(
    dependence: BlockTriangularDependence, node: fx.Node, level: int
) -> tuple[OpOverload, dict[str, Any]] | None:
    """The operation for a norm up to a level, and its arguments; None for what is no layer norm or RMS norm of the last
    dimension alone, where a bias comes without a weight, what reads a separate value for each level, and levels whose
    channels are not neighbours or have sizes without a large common part.
    """
    centred = is_centred(node.target)
    if centred is None or not dependence.is_flat(node):
        return None
    values = bound(node)
    if len(values["normalized_shape"]) != 1 or (values.get("bias") is not None and values["weight"] is None):
        return None
    if any(source in dependence.separate for source in node.all_input_nodes):
        return None
    (dim,) = dependence.narrowed_dims(node)
    expr = dependence.axes.dims[node][dim]
    chunks = dependence.chunks(expr)[dependence.kept(expr, level)]
    if dim != len(dependence.axes.dims[node]) - 1 or (np.diff(chunks) < 0).any():
        return None
    ends = [int(end) for end in dict.fromkeys(np.searchsorted(chunks, range(level + 1), side="right")) if end]
    if not is_regular(ends):
        return None
    eps = values["eps"] if values["eps"] is not None else torch.finfo(type_of(node).dtype).eps
    given = {"weight": values["weight"], "bias": values.get("bias")}
    more = {"ends": ends, "eps": eps, "centred": centred}
    return PREFIX_NORM, {"input": values["input"], **given, **more}
