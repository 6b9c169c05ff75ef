"""Softmax. Its elements compete: a level has fewer competitors, as the same network built thin has.

That is what a level means where the elements are units that a layer gives, like those of a layer norm. Others keep
their number: positions, the queries and slots that attention scores, the rows of a table.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from anytimeify.graph.traversal import ancestors
from anytimeify.rules.factors import Expr, leaves, resolve
from anytimeify.rules.lifting import Values, plain
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import axis_rule, contractions, has_kind, tensor_operands
from anytimeify.rules.targets import aten


def _softmax(op: Op) -> Dims:
    x = op.axes(op["self"])
    axis = x[op.dim()]
    if not _given_by_a_layer(op, axis):
        op.pin(axis, "normalised over")
    op.mix(axis)
    return x


def _given_by_a_layer(op: Op, axis: Expr) -> bool:
    """Whether the elements are the units of a layer, behind whatever is done to each of them."""
    node = op["self"]
    while has_kind(node, "pointwise", "cast", "norm", "dropout", "reshape", "permutation", "pooling", "reduction"):
        operands = tensor_operands(node)
        node = operands[0] if len(operands) == 1 else max(operands, key=_depends_on_inputs)
    wanted = set(leaves(resolve(axis)))
    return bool(wanted) and any(
        one.given is not None
        and wanted <= set(leaves(resolve(op.axes(node)[one.given])))
        and not _depends_on_inputs(one.weight)
        and _depends_on_inputs(one.input)
        for one in contractions(node)
    )


def _depends_on_inputs(node: fx.Node) -> bool:
    return any(one.op == "placeholder" for one in ancestors([node]))


def _softmax_config(values: Values) -> dict[str, Any] | None:
    return {"dim": values["dim"]} if values["dtype"] is None else None


axis_rule(aten("softmax.int"), _softmax, module=plain(nn.Softmax, _softmax_config))
axis_rule(aten("log_softmax.int"), _softmax, module=plain(nn.LogSoftmax, _softmax_config))
axis_rule(aten("_softmax.default", "_log_softmax.default"), _softmax)
