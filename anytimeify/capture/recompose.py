"""Writes the operations of core ATen, which `run_decompositions` leaves, as the operations they were made of.

    y = getitem(native_layer_norm(x, [8], w, b, 1e-5), 0)       ->      y = layer_norm(x, [8], w, b, 1e-5)

`convolution` becomes `conv2d` and its kin, `native_layer_norm(...)[0]` becomes `layer_norm`, and so on. A batch norm of
a program that was exported in train mode also returns its new running statistics, which the program's caller would
write back: it becomes the `batch_norm` that writes them itself. Programs that come straight from `torch.export.export`
hold none of them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from anytimeify._torch import schema
from anytimeify.capture.work_graph import WorkGraph, insert, replace, step, unsupported
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import bound
from anytimeify.rules.decomposed import NORMS_WITH_STATISTICS, is_decomposed, recomposed

__all__ = ["recompose"]

aten = torch.ops.aten


@step("recompose")
def recompose(work: WorkGraph) -> None:
    """Rewrites what has one exact counterpart; everything else stays.

    Raises `UnsupportedOpError` for a norm whose new statistics the model itself reads."""
    for node in list(work.graph.nodes):
        if node.target in NORMS_WITH_STATISTICS:
            _batch_norm_of_training(node)
        elif is_decomposed(node.target):
            (_first_result if len(schema(node.target).returns) > 1 else _result)(node)


def _result(node: fx.Node) -> None:
    found = recomposed(node.target, bound(node))
    if found is not None:
        replace(node, insert(node, found[0], *found[1]))


def _first_result(node: fx.Node) -> None:
    """Operations that also return statistics, which only a backward pass would read."""
    reads = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in reads):
        return
    found = recomposed(node.target, bound(node))
    if found is None:
        return
    new = insert(node, found[0], *found[1], val=value_of(reads[0]) if reads else None)
    for user in reads:
        replace(user, new)
    node.graph.erase_node(node)


def _batch_norm_of_training(node: fx.Node) -> None:
    """Where the new statistics are written back, or read by the next call of the same norm, they are the old tensors:
    those calls write to them one after the other. Refuses to guess what anything else wants of them."""
    given, statistics = bound(node), NORMS_WITH_STATISTICS[node.target]
    reads: dict[Any, fx.Node] = {user.args[1]: user for user in node.users}  # by the number of the result
    for index, read in reads.items():
        for user in read.users if index else ():
            again = index in statistics and user.target is node.target and bound(user)[statistics[index]] is read
            if user.op != "output" and not again:
                raise unsupported(
                    node,
                    f"gives statistics that '{user.name}' reads",
                    "Pass the program as it was before run_decompositions.",
                )
    for index, name in statistics.items():
        if index in reads:
            replace(reads[index], given[name])
    if 0 in reads:
        operands = (given[name] for name in ("input", "weight", "bias", "running_mean", "running_var"))
        flags = given["training"], given["momentum"], given["eps"], False
        replace(reads[0], insert(node, aten.batch_norm.default, *operands, *flags, val=value_of(reads[0])))
    node.graph.erase_node(node)
