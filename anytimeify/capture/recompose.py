"""Writes operations of core ATen, which `run_decompositions` leaves, as the operations they were made of.

`convolution` becomes `conv2d` and its kin, `native_layer_norm(...)[0]` becomes `layer_norm`, and so on. A batch norm of
a program that was exported in train mode also returns its new running statistics, which the program's caller would
write back: it becomes the `batch_norm` that writes them itself. Programs that come straight from `torch.export.export`
hold none of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from anytimeify.capture.draft import Draft, fake, insert, replace, step, unsupported
from anytimeify.node_meta import value_of
from anytimeify.schema import bound

__all__ = ["recompose"]

aten = torch.ops.aten
_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
_TRANSPOSED = {3: aten.conv_transpose1d.default, 4: aten.conv_transpose2d.input, 5: aten.conv_transpose3d.input}


@step("recompose")
def recompose(draft: Draft) -> None:
    """Rewrites what has one exact counterpart; everything else stays.

    Raises `UnsupportedOpError` for a norm whose new statistics the model itself reads."""
    for node in list(draft.graph.nodes):
        if node.target is aten.convolution.default:
            _convolution(node)
        elif node.target in _FIRST_RESULTS:
            _first_result(node)
        elif node.target is aten._native_batch_norm_legit_functional.default:
            _batch_norm_of_training(node)


def _convolution(node: fx.Node) -> None:
    given, weight = bound(node), fake(node.args[1])  # type: ignore[arg-type]  # the schema: a tensor
    if weight is None or weight.ndim not in _CONVOLUTIONS:
        return
    head = given["input"], given["weight"], given["bias"], given["stride"], given["padding"]
    if given["transposed"]:
        tail = given["output_padding"], given["groups"], given["dilation"]
        replace(node, insert(node, _TRANSPOSED[weight.ndim], *head, *tail))
    else:
        replace(node, insert(node, _CONVOLUTIONS[weight.ndim], *head, given["dilation"], given["groups"]))


def _first_result(node: fx.Node) -> None:
    """Operations that also return statistics, which only a backward pass would read."""
    reads = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in reads):
        return
    target, arguments = _FIRST_RESULTS[node.target](bound(node))
    new = insert(node, target, *arguments, val=value_of(reads[0]) if reads else None)
    for user in reads:
        replace(user, new)
    node.graph.erase_node(node)


# Results of a batch norm that are its running statistics after the batch, and the arguments that they replace.
_STATISTICS = {3: "running_mean", 4: "running_var"}


def _batch_norm_of_training(node: fx.Node) -> None:
    """Where the new statistics are written back, or read by the next call of the same norm, they are the old tensors:
    those calls write to them one after the other. Refuses to guess what anything else wants of them."""
    given = bound(node)
    reads: dict[Any, fx.Node] = {user.args[1]: user for user in node.users}  # by the number of the result
    for index, read in reads.items():
        for user in read.users if index else ():
            again = index in _STATISTICS and user.target is node.target and bound(user)[_STATISTICS[index]] is read
            if user.op != "output" and not again:
                raise unsupported(
                    node,
                    f"gives statistics that '{user.name}' reads",
                    "Pass the program as it was before run_decompositions.",
                )
    for index, name in _STATISTICS.items():
        if index in reads:
            replace(reads[index], given[name])
    if 0 in reads:
        operands = (given[name] for name in ("input", "weight", "bias", "running_mean", "running_var"))
        flags = given["training"], given["momentum"], given["eps"], False
        replace(reads[0], insert(node, aten.batch_norm.default, *operands, *flags, val=value_of(reads[0])))
    node.graph.erase_node(node)


def _batch_norm(given: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    statistics = given["running_mean"], given["running_var"]
    tail = False, given["momentum"], given["eps"], False
    return aten.batch_norm.default, (given["input"], given["weight"], given["bias"], *statistics, *tail)


def _batch_norm_without_statistics(given: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    tail = None, None, True, given["momentum"], given["eps"], False
    return aten.batch_norm.default, (given["input"], given["weight"], given["bias"], *tail)


def _dropout(given: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    return aten.dropout.default, (given["input"], given["p"], given["train"] is not False)


def _layer_norm(given: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    return aten.layer_norm.default, tuple(given[name] for name in names)


def _group_norm(given: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    return aten.group_norm.default, tuple(given[name] for name in ("input", "group", "weight", "bias", "eps"))


_FIRST_RESULTS: dict[Any, Callable[[dict[str, Any]], tuple[Any, tuple[Any, ...]]]] = {
    aten._native_batch_norm_legit.no_stats: _batch_norm_without_statistics,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_dropout.default: _dropout,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
}
