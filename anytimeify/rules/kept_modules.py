"""Modules of the user's that are kept whole: nothing of what they read is narrowed."""

from __future__ import annotations

from typing import Any

from torch import fx

from anytimeify.ir import Size
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.operators.kept_modules import KEPT_MODULE, KeptModule, Multiple, shell_of
from anytimeify.rules.lifting import Made, Shapes, Values, by_mode
from anytimeify.rules.op import Op
from anytimeify.rules.table import axis_rule


def _whole(op: Op) -> Any:
    shell = shell_of(op["module"])
    return op.give_up(f"{shell.title} is kept whole")


def _macs(node: fx.Node) -> Size:
    given = bound(node)
    macs = shell_of(given["module"]).sample.macs
    if isinstance(macs, Multiple):
        size: Size = type_of(given["inputs"][macs.place]).shape[macs.dim]
        return Size(macs.factor) * size
    return Size(macs)


def _module(values: Values, shapes: Shapes) -> Made:
    return KeptModule, {"name": values["module"], "trains": values["training"]}


axis_rule(
    KEPT_MODULE,
    _whole,
    macs=_macs,
    kind="kept module",
    training="training",
    module=by_mode(_module, "inputs", "state"),
)
