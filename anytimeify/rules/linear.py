"""Linear layers, matrix products, einsum and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from anytimeify.ir import Size
from anytimeify.ir.schema import bound
from anytimeify.operators.modules import AttentionDropout
from anytimeify.rules.factors import ONE, resolve
from anytimeify.rules.lifting import WEIGHT_BIAS, Made, Shapes, Values, by_mode, of_tensors
from anytimeify.rules.notation import Notation, parse
from anytimeify.rules.op import Call, Dims, Op, apply, solve
from anytimeify.rules.table import axis_rule, build_rule
from anytimeify.rules.targets import aten


def _linear_module(values: Values, shapes: Shapes) -> Made | None:
    if len(shapes.sizes["weight"]) != 2:
        return None
    outputs, inputs = shapes.sizes["weight"]
    return nn.Linear, {"in_features": inputs, "out_features": outputs, "bias": values["bias"] is not None}


def _triangular_linear(node: fx.Node) -> Call:
    given = bound(node)
    arguments = {name: given[name] for name in ("input", "weight", "bias")}
    return Call(torch.ops.anytimeify.triangular_linear.default, arguments)


axis_rule(
    aten("linear.default"),
    ["... i, o i, o -> ... o", "... i, i ->"],
    macs="... i o",
    bias="bias",
    products=True,
    triangular=_triangular_linear,
    module=of_tensors(_linear_module),
)
axis_rule(
    aten("matmul.default"),
    ["... i k, ... k j -> ... i j", "... i k, k -> ... i", "k, ... k j -> ... j", "k, k ->"],
    macs="... i k j",
    products=True,
)
axis_rule(aten("mm.default"), "i k, k j -> i j", macs="i k j", products=True)
axis_rule(aten("bmm.default"), "b i k, b k j -> b i j", macs="b i k j", products=True)
axis_rule(aten("mv.default"), "i k, k -> i", macs="i k", products=True)
axis_rule(aten("dot.default", "vdot.default"), "k, k ->", macs="k")
axis_rule(aten("inner.default"), ["... k, k -> ...", "k, ... k -> ..."], macs="... k", products=True)


def _unscaled(node: fx.Node) -> bool:
    return bool(bound(node)["beta"] == 1 and bound(node)["alpha"] == 1)


axis_rule(
    aten("addmm.default"),
    ["j, i k, k j -> i j", "i j, i k, k j -> i j"],
    macs="i k j",
    bias="self",
    products=_unscaled,
)
axis_rule(
    aten("baddbmm.default"),
    ["b i j, b i k, b k j -> b i j", "... i j, b i k, b k j -> b i j"],
    macs="b i k j",
    bias="self",
    products=_unscaled,
)


# a table of embeddings: its indices are no places of the batch
def _all_dims(node: fx.Node) -> range:
    return range(len(bound(node)["weight"].meta["type"].shape))


def _embedding_module(values: Values, shapes: Shapes) -> Made:
    count, width = shapes.sizes["weight"]
    padding = values["padding_idx"]
    return nn.Embedding, {
        "num_embeddings": count,
        "embedding_dim": width,
        "padding_idx": None if padding < 0 else padding,
        "scale_grad_by_freq": values["scale_grad_by_freq"],
        "sparse": values["sparse"],
    }


axis_rule(
    aten("embedding.default"),
    "v e, ... -> ... e",
    kind="lookup",
    placed=_all_dims,
    module=of_tensors(_embedding_module, {"weight": "weight"}, "indices"),
)
axis_rule(aten("outer.default"), "i, j -> i j")


# two inputs, and a weight that meets both
def _bilinear_module(values: Values, shapes: Shapes) -> Made:
    outputs, first, second = shapes.sizes["weight"]
    sizes = {"in1_features": first, "in2_features": second, "out_features": outputs}
    return nn.Bilinear, {**sizes, "bias": values["bias"] is not None}


axis_rule(
    aten("bilinear.default"),
    "... i, ... j, o i j, o -> ... o",
    macs="... i j o",
    bias="bias",
    products=True,
    module=of_tensors(_bilinear_module, WEIGHT_BIAS, "input1", "input2"),
)


# An attended position is normalised over, so it keeps its size. Heads are cut whole: `e` and `v` stay as they are
# because they lie inside a product (heads, head size) elsewhere. A single head has no product around it, so it says so
# itself.
_ATTENTION = "... l e, ... s e, ... s v, ... l s -> ... l v"
_GROUPED = "n (g r) l e, n g s e, n g s v, ... l s -> n (g r) l v"
_attention = build_rule(_ATTENTION, macs=["... l s e", "... l s v"])
_grouped = build_rule(_GROUPED, macs=["n g r l s e", "n g r l s v"])


def _scaled_dot_product_attention(op: Op) -> Dims:
    result: Dims = (_grouped if op["enable_gqa"] else _attention).infer(op)
    op.pin(op.axes(op["key"])[-2], "attended positions", "position")
    if op.rank(op["query"]) < 3 or resolve(op.axes(op["query"])[-3]) == ONE:
        op.pin(op.axes(op["query"])[-1], "the only attention head")
        op.pin(op.axes(op["value"])[-1], "the only attention head")
    return result


def _attention_macs(node: fx.Node) -> Size:
    rule = _grouped if bound(node).get("enable_gqa") else _attention
    assert rule.macs is not None
    return rule.macs(node)


def _attention_module(values: Values, shapes: Shapes) -> Made | None:
    config = {name: values[name] for name in ("is_causal", "scale", "enable_gqa")}
    return (AttentionDropout, {"p": values["dropout_p"], **config}) if values["dropout_p"] > 0 else None


axis_rule(
    aten("scaled_dot_product_attention.default"),
    _scaled_dot_product_attention,
    macs=_attention_macs,
    kind="attention",
    training="dropout_p",
    module=by_mode(_attention_module, "query", "key", "value", "attn_mask"),
)


def _line(equation: str) -> str:
    """An einsum equation in factor notation. Where a letter repeats inside one operand (a diagonal), its dimensions are
    one axis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spaced = [" ".join(term.replace("...", ".")).replace(".", "...") for term in [*terms, right]]
    return f"{', '.join(spaced[:-1])} -> {spaced[-1]}"


def _einsum(op: Op) -> Dims:
    result: Dims = build_rule(_line(op["equation"])).infer(op)
    return result


def _einsum_macs(node: fx.Node) -> Size:
    arguments = bound(node)
    if len(arguments["tensors"]) < 2:
        return Size(0)
    line = parse(_line(arguments["equation"]))
    sizes = solve(line, [n.meta["type"].shape for n in arguments["tensors"]], node.meta["type"].shape)
    total = Size(1)
    for size in sizes.values():
        total = total * size
    return total


# what both have goes; the others stand one behind the other
def _tensordot_line(node: fx.Node) -> Notation:
    given = bound(node)
    ranks = [len(given[name].meta["type"].shape) for name in ("self", "other")]
    gone = [[dim % rank for dim in given[name]] for name, rank in zip(("dims_self", "dims_other"), ranks, strict=True)]
    left, right = ([f"{side}{dim}" for dim in range(rank)] for side, rank in zip("ab", ranks, strict=True))
    kept = [name for dim, name in enumerate(left) if dim not in gone[0]]
    kept += [name for dim, name in enumerate(right) if dim not in gone[1]]
    for one, other in zip(*gone, strict=True):
        left[one] = right[other] = f"k{one}"
    return parse(f"{' '.join(left)}, {' '.join(right)} -> {' '.join(kept)}")


def _tensordot(op: Op) -> Dims:
    result: Dims = apply(_tensordot_line(op.node), op, [op["self"], op["other"]])
    return result


def _tensordot_macs(node: fx.Node) -> Size:
    given = bound(node)
    shape: Sequence[Size] = given["self"].meta["type"].shape
    result: Size = node.meta["type"].size
    return math.prod((shape[dim] for dim in given["dims_self"]), start=result)


axis_rule(
    aten("tensordot.default"),
    _tensordot,
    macs=_tensordot_macs,
    notation=_tensordot_line,
    kind="layer",
    products=True,
)


# decompositions, inverses and exponentials of matrices: an element depends on all of them, and a part of an orthogonal
# matrix is not orthogonal
def _whole_matrix(op: Op) -> Any:
    for operand in op.operands():
        op.mix(*op.axes(operand))
    return op.give_up("a matrix is read as a whole")


axis_rule(
    aten(
        *("matrix_exp.default", "linalg_matrix_exp.default", "linalg_solve.default", "linalg_inv.default"),
        *("linalg_householder_product.default", "linalg_qr.default", "linalg_svd.default", "linalg_cholesky.default"),
        *("linalg_det.default", "linalg_slogdet.default", "linalg_eigh.default"),
    ),
    _whole_matrix,
)


axis_rule(
    torch.ops.aten.einsum.default,
    _einsum,
    macs=_einsum_macs,
    notation=lambda node: parse(_line(bound(node)["equation"])),
    kind="layer",
    products=True,
)
