"""Norms of all levels of a triangular network, whose channels are prefixes, as one operation of ours: the trait
`prefix` of a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import fx

from anytimeify.ir import Size
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.kernels.norms_together import is_regular
from anytimeify.kernels.prefix_norm import PREFIX_GROUP_NORM, PREFIX_NORM, PREFIX_STANDARDISE
from anytimeify.rules.op import Call

__all__ = ["Ends", "Prefix", "group_of_all", "last_dimension", "standardised"]


class Ends(Protocol):
    """Where the levels of a norm's result end."""

    narrowed: list[int]
    rank: int

    def ends(self, dim: int) -> list[int] | None:
        """Of every level in a dimension; None where their channels are not neighbours, or the first has none."""


Prefix: TypeAlias = Callable[[fx.Node, Ends], Call | None]
"""The call for all levels of a norm; None where its levels or arguments are not of the kind that it takes."""


def last_dimension(node: fx.Node, levels: Ends, *, centred: bool) -> Call | None:
    """A norm of the last dimension alone; `centred`: it takes the mean away, as a layer norm does, and an RMS norm does
    not."""
    values = bound(node)
    if levels.narrowed != [levels.rank - 1] or len(values["normalized_shape"]) != 1:
        return None
    ends = levels.ends(levels.rank - 1)
    if ends is None or not is_regular(ends := list(dict.fromkeys(ends))):
        return None
    eps = values["eps"] if values["eps"] is not None else torch.finfo(type_of(node).dtype).eps
    given = {"input": values["input"], "weight": values["weight"], "bias": values.get("bias")}
    return Call(PREFIX_NORM, {**given, "ends": ends, "eps": eps, "centred": centred})


def group_of_all(node: fx.Node, levels: Ends) -> Call | None:
    """A group norm of one group."""
    values = bound(node)
    if levels.narrowed != [1] or values["num_groups"] != 1:
        return None
    ends = levels.ends(1)
    if ends is None or not is_regular(ends := list(dict.fromkeys(ends))):
        return None
    given = {name: values[name] for name in ("input", "weight", "bias", "eps")}
    return Call(PREFIX_GROUP_NORM, {**given, "ends": ends})


def standardised(node: fx.Node, levels: Ends) -> Call | None:
    """Weight standardisation: a batch norm of one sample, without statistics of its own, of which outputs and inputs
    differ between levels."""
    values, shape = bound(node), type_of(node).shape
    if levels.narrowed != [1, 2] or len(shape) != 3 or shape[0] != Size(1):
        return None
    if values["training"] is not True or values["running_mean"] is not None:
        return None
    rows, ends = levels.ends(1), levels.ends(2)
    if rows is None or ends is None or not is_regular(ends):
        return None
    given = {name: values[name] for name in ("input", "weight", "bias", "eps")}
    return Call(PREFIX_STANDARDISE, {**given, "rows": rows, "ends": ends})
