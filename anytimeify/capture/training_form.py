"""Writes norms that were exported in eval mode in their training form.

    y = batch_norm(x, w, b, m, v, False, ...)       ->      y = batch_norm(x, w, b, m, v, True, ...)

A graph exported in eval mode has `batch_norm(..., training=False, ...)` everywhere. With running statistics, the
training form means the same in eval mode, and trains. What else training does (dropout, stochastic depth) is lost.
In a graph that was exported in train mode such a norm is frozen on purpose and stays.

A dropout that is on in eval mode is on always (`F.dropout(x)` without its flag). Dropout of the canonical form follows
the mode, so that one is written as what it computes: a product with random numbers.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from anytimeify._torch import OpOverload, schema
from anytimeify.capture.work_graph import WorkGraph, insert, replace, step, update
from anytimeify.ir.node_meta import origin_of
from anytimeify.ir.schema import bound
from anytimeify.rules.table import has_kind
from anytimeify.rules.training import training_flag

__all__ = ["restore_training_form", "trains"]

aten = torch.ops.aten


@step("restore training form")
def restore_training_form(work: WorkGraph, *, held: frozenset[str]) -> None:
    """Rewrites every norm with running statistics, for those without have no eval form, and every dropout. Norms of
    the modules `held` in eval mode, by path, stay as they are."""
    for node in list(work.graph.nodes):
        flag = training_flag(node.target)
        if flag is not None and has_kind(node, "norm"):
            if bound(node).get("running_mean") is not None and origin_of(node).module_path not in held:
                update(node, None, **{flag: True})
        elif node.target is aten.dropout.default:
            x, keep = node.args[0], 1 - bound(node)["p"]
            noise = insert(node, aten.bernoulli.p, x, keep)
            replace(
                node, insert(node, aten.mul.Tensor, x, insert(node, aten.div.Tensor, noise, keep) if keep else noise)
            )


def trains(exported: ExportedProgram) -> bool:
    """Whether a program was exported in train mode: some operation of it has its training flag set."""
    for module in exported.graph_module.modules():
        for node in getattr(module, "graph", exported.graph).nodes:
            if not isinstance(node.target, OpOverload):
                continue
            flag, values = training_flag(node.target), bound(node)
            if flag is not None and values[flag] is True and values.get("running_mean", True) is not None:
                return True
            if schema(node.target).name.startswith("aten::bernoulli"):  # stochastic depth, which has no flag
                return True
    return False
