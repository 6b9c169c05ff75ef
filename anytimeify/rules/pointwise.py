"""Element-wise operations with broadcasting, and what else leaves every axis as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

import anytimeify.modules  # noqa: F401  # registers torch.ops.anytimeify
from anytimeify import factors
from anytimeify.factors import ONE, Expr, resolve
from anytimeify.rules.op import Dims, Op
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten


def broadcast(op: Op, operands: Sequence[fx.Node]) -> Dims:
    """Dims aligned from the right; dimensions of size one give way to the others."""
    rank = len(op.type().shape)
    result: list[Expr] = [ONE] * rank
    for operand in operands:
        axes = op.axes(operand)
        for dim, expr in enumerate(axes, start=rank - len(axes)):
            if resolve(expr) == ONE:
                continue
            if result[dim] is not ONE:
                op.unify(result[dim], expr)
            else:
                result[dim] = expr
    return tuple(result)


def pointwise(op: Op) -> Dims:
    """All tensor operands broadcast against each other."""
    return broadcast(op, op.operands())


# fmt: off
UNARY = [
    "real", "imag", "conj_physical", "resolve_conj", "resolve_neg",
    "abs", "acos", "acosh", "angle", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil", "celu", "clamp",
    "clamp_max", "clamp_min", "clip", "clone", "conj", "cos", "cosh", "deg2rad", "detach", "digamma",
    "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "fix", "floor", "frac", "gelu",
    "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "isfinite", "isinf", "isnan", "leaky_relu", "lgamma", "log", "log10", "log1p", "log2",
    "log_sigmoid", "logical_not", "logit", "mish", "nan_to_num", "neg", "negative",
    "positive", "rad2deg", "reciprocal", "relu", "relu6", "round", "rrelu", "rsqrt", "selu", "sgn", "sigmoid",
    "sign", "signbit", "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "softsign", "sqrt", "square",
    "tan", "tanh", "tanhshrink", "threshold", "to", "trunc", "_to_copy", "type_as", "zeros_like", "ones_like",
    "full_like", "empty_like", "contiguous", "lift_fresh_copy",
    "masked_fill", "fill", "where", "pow", "float_power", "addcmul", "addcdiv", "lerp",
]
# fmt: on
# fmt: off
BINARY = [
    "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "maximum",
    "minimum", "fmax", "fmin", "atan2", "hypot", "logaddexp", "logaddexp2", "eq", "ne", "lt", "le", "gt", "ge",
    "bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor", "rsub", "complex", "polar",
    "copysign", "xlogy",
]
# fmt: on
RANDOM = ["rand_like", "randn_like", "bernoulli"]
DROPOUTS = ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"]
axis_rule(
    [target for target in aten(*UNARY, *BINARY) if target not in aten("where.default")], pointwise, kind="pointwise"
)
axis_rule(aten("add", "sub", "subtract"), pointwise, joins=True, kind="pointwise")
axis_rule(aten(*RANDOM), pointwise, kind="random")
axis_rule(aten(*DROPOUTS), pointwise, kind="dropout", training="train")


# the result and the mask
def _with_mask(op: Op) -> tuple[Dims, ...]:
    x = op.axes(op["input"])
    return x, x


axis_rule(aten("native_dropout.default"), _with_mask, kind="dropout", training="train")


# one slope per channel, or one for all
def _prelu(op: Op) -> Dims:
    x, slope = op.axes(op["self"]), op.axes(op["weight"])
    if resolve(slope[0]) != ONE and len(x) > 1:
        op.unify(x[1], slope[0])
    return x


axis_rule(aten("prelu.default"), _prelu)


def _drop_path(op: Op) -> Dims:
    return op.axes(op["x"])


def _like_other(op: Op) -> Dims:
    return broadcast(op, [op["other"], op["self"]])


axis_rule(aten("expand_as.default"), _like_other)


# softmax normalises along its dimension: its entries compete, so leaving some out changes what it means
def _softmax(op: Op) -> Dims:
    x = op.axes(op["self"])
    op.pin(x[op.dim()], "normalised over")
    op.mix(x[op.dim()])
    return x


axis_rule(aten("softmax.int", "log_softmax.int", "_softmax.default", "_log_softmax.default", "softmin"), _softmax)


# running sums and rotations depend on the order along their dimension
def _along(op: Op) -> Dims:
    x = op.axes(op["self"])
    for dim in op.dims("dims" if op["dims"] is not None else "dim"):
        op.pin(x[dim], "the order along it matters")
        op.mix(x[dim])
    return x


def _sort(op: Op) -> tuple[Dims, ...]:
    x = _along(op)
    return x, x


axis_rule(aten("cumsum.default", "cumprod.default", "roll.default", "flip.default", "argsort"), _along)
axis_rule(aten("sort", "cummax.default", "cummin.default"), _sort)


# the gated linear unit halves one dimension
def _glu(op: Op) -> Dims:
    x = op.axes(op["self"])
    dim = op.dim()
    size = op.type().shape[dim]
    halves = factors.cut(x[dim], [size, size], op.where)
    if halves is None:
        return op.give_up("cannot be halved")
    op.unify(halves[0], halves[1])
    return (*x[:dim], halves[0], *x[dim + 1 :])


axis_rule(aten("glu.default"), _glu)
axis_rule(torch.ops.anytimeify.drop_path.default, _drop_path, kind="stochastic depth")
