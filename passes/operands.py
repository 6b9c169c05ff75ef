"""The blocks of a layer whose weight is block-triangular, and how the layer reads it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx

from anytimeify.node_meta import type_of
from anytimeify.rules import Contraction, contractions

__all__ = ["Blocks", "blocks_of", "contraction_of"]

Places: TypeAlias = npt.NDArray[np.int64]
Blocks: TypeAlias = tuple[tuple[Places, Places], ...]
"""Of every block, the rows of a weight and the columns that these read."""


def contraction_of(node: fx.Node, weight: fx.Node) -> Contraction | None:
    """How a layer reads a weight, where this meets one input along one dimension, and groups are parts of the rows."""
    found = [one for one in contractions(node) if one.weight is weight]
    if len(found) != 1 or found[0].rows is None:
        return None
    one = found[0]
    width, read = (type_of(source).shape[dim] for source, dim in ((weight, one.columns), (one.input, one.read)))
    if len(type_of(one.input).shape) < 2 or read.coefficient != one.groups * width.coefficient:
        return None
    return one


def blocks_of(node: fx.Node, weight: fx.Node, dims: tuple[int, int], blocks: Blocks) -> Blocks:
    """The products that a layer is made of whose weight has nothing but `blocks`, rows and columns counted along the
    dimensions `dims` of it: neighbours that read the same columns are one.

    Empty where the layer is not known, where rows read nothing, and where groups have unequal parts of the rows.
    """
    contraction = contraction_of(node, weight)
    if contraction is None or dims != (contraction.rows, contraction.columns):
        return ()
    joined: list[tuple[Places, Places]] = []
    for rows, columns in blocks:
        if joined and np.array_equal(joined[-1][1], columns):
            joined[-1] = (np.union1d(joined[-1][0], rows), columns)
        elif len(rows):
            joined.append((rows, columns))
    per_group = sum(len(rows) for rows, _ in joined) // contraction.groups
    if any(not len(columns) or not _even(rows // per_group, contraction.groups) for rows, columns in joined):
        return ()
    return tuple(joined)


def _even(owners: Places, count: int) -> bool:
    shares = np.bincount(owners, minlength=count)
    return bool(shares.min() == shares.max())
