"""Linear layers, matrix products, einsum and attention."""

from __future__ import annotations

import torch
from torch import fx

from anytimeify.factors import ONE, resolve
from anytimeify.ir import Size
from anytimeify.rules.notation import parse
from anytimeify.rules.op import Dims, Op, solve
from anytimeify.rules.table import axis_rule, build_rule
from anytimeify.rules.targets import aten
from anytimeify.schema import bound

axis_rule(aten("linear.default"), ["... i, o i, o -> ... o", "... i, i ->"], macs="... i o")
axis_rule(
    aten("matmul.default"),
    ["... i k, ... k j -> ... i j", "... i k, k -> ... i", "k, ... k j -> ... j", "k, k ->"],
    macs="... i k j",
)
axis_rule(aten("mm.default"), "i k, k j -> i j", macs="i k j")
axis_rule(aten("bmm.default"), "b i k, b k j -> b i j", macs="b i k j")
axis_rule(aten("mv.default"), "i k, k -> i", macs="i k")
axis_rule(aten("addmm.default"), ["j, i k, k j -> i j", "i j, i k, k j -> i j"], macs="i k j")
axis_rule(aten("baddbmm.default"), ["b i j, b i k, b k j -> b i j", "... i j, b i k, b k j -> b i j"], macs="b i k j")
axis_rule(aten("embedding.default"), "v e, ... -> ... e")
axis_rule(aten("outer.default"), "i, j -> i j")


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


axis_rule(
    aten("scaled_dot_product_attention.default"), _scaled_dot_product_attention, macs=_attention_macs, kind="attention"
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


axis_rule(
    torch.ops.aten.einsum.default,
    _einsum,
    macs=_einsum_macs,
    notation=lambda node: parse(_line(bound(node)["equation"])),
    kind="layer",
)
