"""Fourier transforms: transformed dimensions are mixed whole, the others pass. Complex tensors as pairs."""

from __future__ import annotations

from anytimeify.ir import Size
from anytimeify.rules.factors import Expr
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


def _transform(op: Op) -> Dims:
    x: list[Expr] = list(op.axes(op["self"]))
    for dim in op.dims():
        op.pin(x[dim], "transformed to frequencies")
        x[dim] = op.pinned(op.type().shape[dim], "frequencies", "position")
    return tuple(x)


KINDS = [f"fft_{kind}fft{rank}" for kind in ("", "i", "r", "ir", "h", "ih") for rank in ("", "2", "n")]
axis_rule(aten(*KINDS), _transform)


# the last dimension of a real view holds the real and the imaginary part
def _view_as_real(op: Op) -> Dims:
    return (*op.axes(op["self"]), op.pinned(Size(2), "real and imaginary part"))


def _view_as_complex(op: Op) -> Dims:
    *rest, pair = op.axes(op["self"])
    op.pin(pair, "real and imaginary part")
    return tuple(rest)


axis_rule(aten("view_as_real.default", "view_as_real_copy.default"), _view_as_real, view=True)
axis_rule(aten("view_as_complex.default"), _view_as_complex, view=True)
