"""Operations of core ATen, which `run_decompositions` leaves, and the operations that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

__all__ = ["NORMS_WITH_STATISTICS", "is_decomposed", "recomposed"]

aten = torch.ops.aten

Given: TypeAlias = Mapping[str, Any]
Whole: TypeAlias = tuple[Any, tuple[Any, ...]]
"""An operation and its arguments."""

_CONVOLUTIONS = {
    3: (aten.conv1d.default, aten.conv_transpose1d.default),
    4: (aten.conv2d.default, aten.conv_transpose2d.input),
    5: (aten.conv3d.default, aten.conv_transpose3d.input),
}


def _convolution(given: Given) -> Whole | None:
    weight = given["weight"].meta.get("val")
    if weight is None or weight.ndim not in _CONVOLUTIONS:
        return None
    plain, transposed = _CONVOLUTIONS[weight.ndim]
    head = given["input"], given["weight"], given["bias"], given["stride"], given["padding"]
    if given["transposed"]:
        return transposed, (*head, given["output_padding"], given["groups"], given["dilation"])
    return plain, (*head, given["dilation"], given["groups"])


def _batch_norm(given: Given) -> Whole:
    statistics = given["running_mean"], given["running_var"]
    tail = False, given["momentum"], given["eps"], False
    return aten.batch_norm.default, (given["input"], given["weight"], given["bias"], *statistics, *tail)


def _batch_norm_without_statistics(given: Given) -> Whole:
    tail = None, None, True, given["momentum"], given["eps"], False
    return aten.batch_norm.default, (given["input"], given["weight"], given["bias"], *tail)


def _dropout(given: Given) -> Whole:
    return aten.dropout.default, (given["input"], given["p"], given["train"] is not False)


def _layer_norm(given: Given) -> Whole:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    return aten.layer_norm.default, tuple(given[name] for name in names)


def _group_norm(given: Given) -> Whole:
    return aten.group_norm.default, tuple(given[name] for name in ("input", "group", "weight", "bias", "eps"))


# Of several results the first is that of the whole; a backward pass would read the others.
_WHOLES: Mapping[object, Callable[[Given], Whole | None]] = {
    aten.convolution.default: _convolution,
    aten._native_batch_norm_legit.no_stats: _batch_norm_without_statistics,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_dropout.default: _dropout,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
}
# Batch norms that give their running statistics after the batch, which the caller writes back: the results that are
# statistics, and the arguments that they replace.
NORMS_WITH_STATISTICS: Mapping[object, Mapping[int, str]] = {
    aten._native_batch_norm_legit_functional.default: {3: "running_mean", 4: "running_var"},
}


def is_decomposed(target: object) -> bool:
    """Whether an operation is a part of another, or a form of it, that `recomposed` knows."""
    return target in _WHOLES


def recomposed(target: object, given: Given) -> Whole | None:
    """The operation that one of core ATen was made of, with its arguments; None where there is none. `given`: the
    arguments by name, tensors as nodes of which `meta["val"]` is known."""
    return _WHOLES[target](given)
