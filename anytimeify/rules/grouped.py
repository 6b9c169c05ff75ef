"""Grouped matrix products: every run of rows meets a matrix of its own, as the tokens of each expert do.

Offsets say where the runs end, so rows and matrices keep their number.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from anytimeify.ir import Size
from anytimeify.rules import factors
from anytimeify.rules.factors import Expr
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import axis_rule, build_rule
from anytimeify.rules.targets import aten

_runs = build_rule("t i, e i o, e -> t o", macs="t i o")
_batches = build_rule("e t i, e i o -> e t o", macs="e t i o")
ALIGNMENT = 16  # bytes, by which torch's kernel counts the rows of its operands


def _by_runs(op: Op) -> Dims:
    rows, matrices, *_ = op.operands()
    op.pin(op.axes(rows)[0], "rows in runs", "position")
    op.pin(op.axes(matrices)[0], "a matrix for every run of rows")
    result: Dims = _runs.infer(op)
    return result


axis_rule(
    "transformers.grouped_mm_fallback.default",
    _by_runs,
    macs=_runs.macs or (),
    notation=_runs.notation,
    kind="layer",
    later=True,
)


def _grouped_mm(op: Op) -> Dims:
    rows, matrices = op.operands()[:2]
    if op.rank(matrices) != 3 or op["bias"] is not None or (op.rank(rows) == 2) != (op["offs"] is not None):
        return op.give_up("runs of columns")
    result: Dims = _by_runs(op) if op.rank(rows) == 2 else _batches.infer(op)
    step = max(1, ALIGNMENT // op.type(rows).dtype.itemsize)
    for expr in (op.axes(rows)[-1], result[-1]):
        _cut_in_steps(op, expr, step)
    return result


def _cut_in_steps(op: Op, expr: Expr, step: int) -> None:
    """Keep so many elements together: in (units step) the outer part is the one that is cut."""
    size = factors.size_of(expr)
    if not Size(step).divides(size) or factors.split(expr, [size // Size(step), Size(step)], op.where) is None:
        op.pin(expr, f"cut in steps of {step} entries alone")


def _grouped_mm_macs(node: fx.Node) -> Size:
    rows: Any = node.args[0]
    rule = _runs if len(rows.meta["type"].shape) == 2 else _batches
    assert rule.macs is not None
    return rule.macs(node)


axis_rule(
    aten("_grouped_mm.default"),
    _grouped_mm,
    macs=_grouped_mm_macs,
    notation=["t i, e i o, e -> t o", "e t i, e i o -> e t o"],
    kind="layer",
)
