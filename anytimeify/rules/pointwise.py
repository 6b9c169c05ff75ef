"""Element-wise operations with broadcasting, and what else leaves every axis as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from anytimeify.operators.modules import DropPath
from anytimeify.rules import factors
from anytimeify.rules.factors import ONE, Expr, resolve
from anytimeify.rules.lifting import Lifting, Made, Shapes, Values, by_mode, of_tensors, plain, take
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
    "clamp_max", "clamp_min", "clip", "clone", "conj", "cos", "cosh", "deg2rad", "digamma",
    "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "fix", "floor", "frac", "gelu", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "isfinite", "isinf", "isnan", "leaky_relu", "lgamma", "log", "log10",
    "log1p", "log2", "log_sigmoid", "logical_not", "logit", "mish", "nan_to_num", "neg", "negative",
    "positive", "rad2deg", "reciprocal", "relu", "relu6", "round", "rsqrt", "selu", "sgn", "sigmoid",
    "polygamma", "sign", "signbit", "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "sqrt", "square",
    "tan", "tanh", "threshold", "trunc", "contiguous", "lift_fresh_copy",
    "masked_fill", "fill", "pow", "float_power", "addcmul", "addcdiv", "lerp",
]
# fmt: on
# fmt: off
BINARY = [
    "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "maximum",
    "minimum", "fmax", "fmin", "atan2", "hypot", "logaddexp", "logaddexp2", "eq", "ne", "lt", "le", "gt", "ge",
    "bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor", "rsub", "complex", "polar",
    "copysign", "xlogy", "ldexp",
]
# fmt: on


def _elu_config(values: Values) -> dict[str, Any] | None:
    return {"alpha": values["alpha"]} if values["scale"] == 1 and values["input_scale"] == 1 else None


def _relu6_config(values: Values) -> dict[str, Any] | None:
    return {} if (values["min_val"], values["max_val"]) == (0, 6) else None


MODULES: dict[str, tuple[Lifting, ...]] = {
    "relu": (plain(nn.ReLU),),
    "relu6": (plain(nn.ReLU6),),
    "hardtanh": (plain(nn.ReLU6, _relu6_config), plain(nn.Hardtanh, take(min_val="min_val", max_val="max_val"))),
    "gelu": (plain(nn.GELU, take(approximate="approximate")),),
    "silu": (plain(nn.SiLU),),
    "mish": (plain(nn.Mish),),
    "selu": (plain(nn.SELU),),
    "tanh": (plain(nn.Tanh),),
    "sigmoid": (plain(nn.Sigmoid),),
    "hardswish": (plain(nn.Hardswish),),
    "hardsigmoid": (plain(nn.Hardsigmoid),),
    "log_sigmoid": (plain(nn.LogSigmoid),),
    "leaky_relu": (plain(nn.LeakyReLU, take(negative_slope="negative_slope")),),
    "elu": (plain(nn.ELU, _elu_config),),
    "celu": (plain(nn.CELU, take(alpha="alpha")),),
    "softplus": (plain(nn.Softplus, take(beta="beta", threshold="threshold")),),
    "hardshrink": (plain(nn.Hardshrink, take(lambd="lambd")),),
    "softshrink": (plain(nn.Softshrink, take(lambd="lambd")),),
    "threshold": (plain(nn.Threshold, take(threshold="threshold", value="value")),),
}
for name in (*UNARY, *BINARY):
    axis_rule(aten(name), pointwise, kind="pointwise", module=MODULES.get(name, ()))
axis_rule([target for target in aten("where") if target not in aten("where.default")], pointwise, kind="pointwise")
axis_rule(aten("add", "sub", "subtract"), pointwise, joins=True, kind="pointwise")
axis_rule(aten("rrelu"), pointwise, kind="pointwise", training="training")
axis_rule(aten("detach"), pointwise, kind="pointwise", evaluation="self")  # of an extract, which has no gradients
axis_rule(aten("to", "_to_copy", "type_as"), pointwise, kind="cast")
axis_rule(aten("zeros_like", "ones_like", "full_like", "empty_like"), pointwise, kind="factory")
axis_rule(aten("rand_like", "randn_like", "bernoulli"), pointwise, kind="random")
axis_rule(
    aten("normal_functional", "uniform", "exponential", "cauchy", "log_normal", "geometric"),
    pointwise,
    kind="random",
)


def _dropout(*kinds: type[nn.Module]) -> Lifting:
    """One class for any rank, or those of inputs of three, four and five dimensions."""

    def read(values: Values, shapes: Shapes) -> Made | None:
        kind = kinds[0] if len(kinds) == 1 else dict(zip((3, 4, 5), kinds, strict=True)).get(shapes.rank)
        return (kind, {"p": values["p"]}) if kind is not None and values["train"] and values["p"] > 0 else None

    return by_mode(read, "input", classes=("torch.nn.modules.dropout.",))


for name, kinds in (
    ("alpha_dropout", (nn.AlphaDropout,)),
    ("dropout", (nn.Dropout,)),
    ("feature_alpha_dropout", (nn.FeatureAlphaDropout,)),
    ("feature_dropout", (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)),
):
    axis_rule(aten(name), pointwise, kind="dropout", training="train", evaluation="input", module=_dropout(*kinds))


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


def _prelu_module(values: Values, shapes: Shapes) -> Made | None:
    size = shapes.sizes["weight"]
    return (nn.PReLU, {"num_parameters": size[0]}) if len(size) == 1 else None


axis_rule(aten("prelu.default"), _prelu, module=of_tensors(_prelu_module, {"weight": "weight"}, "self"))


def _drop_path(op: Op) -> Dims:
    return op.axes(op["x"])


def _drop_path_module(values: Values, shapes: Shapes) -> Made | None:
    return DropPath, {name: values[name] for name in ("keep_prob", "scale_by_keep", "mode")}


def _like_other(op: Op) -> Dims:
    return broadcast(op, [op["other"], op["self"]])


axis_rule(aten("expand_as.default"), _like_other, kind="expansion")


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


axis_rule(aten("glu.default"), _glu, module=plain(nn.GLU, take(dim="dim")))
axis_rule(
    torch.ops.anytimeify.drop_path.default,
    _drop_path,
    kind="stochastic depth",
    evaluation="x",
    module=by_mode(_drop_path_module, "x", classes=("DropPath", "StochasticDepth")),
)
