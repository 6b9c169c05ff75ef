"""Layers of several members at once: linear layers as a batched matrix product, other sums of products as an `einsum`.

    y0 = linear(x0, w0, b0)     ->      y = baddbmm(b, x, w)        # x: (members, n, i), w: (members, i, o)
    y1 = linear(x1, w1, b1)

An `einsum` gets one more index, the members.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Size
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.passes.fusion.batching_layout import Value
from anytimeify.passes.fusion.replicas import Replicas
from anytimeify.rules import Contraction, notation_of, traits
from anytimeify.rules.notation import Dots, Name, Pattern
from anytimeify.rules.op import spread
from anytimeify.rules.table import tensor_operands

__all__ = ["products"]

aten = torch.ops.aten


def products(s: Replicas, node: fx.Node, layer: Contraction) -> Any:
    """A call that is nothing but the sum of products which its line says; None where it is more, or may be."""
    only = traits(node).products
    if only is None or not only(node):
        return None
    return _matrices(s, node, layer) or _einsum(s, node)


def _matrices(s: Replicas, node: fx.Node, layer: Contraction) -> Any:
    """`x @ weight + bias` along the last dimension, as a batched matrix product."""
    depth = s.deepest(node)
    x, weight, bias = layer.input, layer.weight, layer.bias
    place, members = s.find_batch(x), s.count(depth)
    kind = type_of(node)
    last = len(kind.shape) - 1
    if place is None or place == last or layer.others or len(type_of(weight).shape) != 2:
        return None
    if {layer.read, layer.given, len(type_of(x).shape) - 1} != {last}:
        return None
    if any(not size.static for dim, size in enumerate(kind.shape) if dim != place):
        return None
    own = [one for one in (weight, bias) if one is not None]
    if set(tensor_operands(node)) != {x, *own} or any(s.values[one].layout == "one" or s.has_batch(one) for one in own):
        return None
    if bias is not None and len(type_of(bias).shape) != 1:
        return None
    rows = s.unflatten(s.form(x, "batch", depth), place, members, x.name)
    for dim in range(place, 0, -1):
        rows = s.transpose(rows, dim - 1, dim, x.name)
    middle = type_of(rows).shape[1:-1]
    rows = s.flatten_all(rows, 1, -2, x.name)
    matrix = s.unflatten(s.form(weight, "stack", depth), 0, members, weight.name)
    if layer.columns == 1:
        matrix = s.transpose(matrix, 1, 2, weight.name)
    if bias is None:
        result = s.emit(aten.bmm.default, (rows, matrix), f"{node.name}_product")
    else:
        shift = s.unflatten(s.form(bias, "stack", depth), 0, members, bias.name)
        shift = s.unsqueeze(shift, 1, bias.name)
        result = s.emit(aten.baddbmm.default, (shift, rows, matrix), f"{node.name}_product")
    if len(middle) > 1:
        inner = [size.coefficient if size.static else -1 for size in middle]
        result = s.emit(aten.unflatten.int, (result, 1, inner), f"{node.name}_rows")
    for dim in range(place):
        result = s.transpose(result, dim, dim + 1, node.name)
    return Value(depth, "batch", (s.flatten(result, place, node.name),))


def _einsum(s: Replicas, node: fx.Node) -> Any:
    """The line as an equation, members an index more of every operand that differs between them; the bias is added."""
    line, place, kind = notation_of(node), s.find_batch(node), type_of(node)
    if line is None or place is None:
        return None
    depth, operands = s.deepest(node), tensor_operands(node)
    argument = traits(node).bias
    bias = bound(node)[argument] if argument is not None else None
    letters: dict[Any, str] = {}
    terms = [_letters(pattern, one, letters) for pattern, one in zip(line.operands, operands, strict=False)]
    result = _letters(line.results[0], node, letters)
    member = string.ascii_letters[len(letters)]
    read: list[tuple[str, fx.Node]] = []
    for term, source in zip(terms, operands, strict=True):
        if source is bias:
            continue
        own = _with_members(s, source, term, member, depth)
        at = s.find_batch(source)
        if term is None or result is None or own is None or (at is not None and term[at] != result[place]):
            return None
        read.append(own)
    assert result is not None
    equation = f"{','.join(term for term, _ in read)}->{result[:place]}{member}{result[place:]}"
    args = (equation, [one for _, one in read])
    value = s.emit(aten.einsum.default, args, f"{node.name}_product")
    if bias is not None:
        rank = len(type_of(bias).shape)
        if s.values[bias].layout == "one" or s.has_batch(bias) or place + rank > len(kind.shape):
            return None
        shift = s.unflatten(s.form(bias, "stack", depth), 0, s.count(depth), bias.name)
        for _ in range(len(kind.shape) - place - rank):
            shift = s.unsqueeze(shift, 1, bias.name)
        value = s.emit(aten.add.Tensor, (value, shift), f"{node.name}_own")
    return Value(depth, "batch", (s.flatten(value, place, node.name),))


def _with_members(
    s: Replicas, source: fx.Node, term: str | None, member: str, depth: int
) -> tuple[str, fx.Node] | None:
    """An operand of the equation, with what it has of the letters."""
    value, at = s.values[source], s.find_batch(source)
    if term is None:
        return None
    if value.layout == "one":
        return term, value.node
    if at is not None:
        node = s.unflatten(s.form(source, "batch", depth), at, s.count(depth), source.name)
        return term[:at] + member + term[at:], node
    if s.has_batch(source):
        return None
    return member + term, s.unflatten(s.form(source, "stack", depth), 0, s.count(depth), source.name)


def _letters(pattern: Pattern, node: fx.Node, letters: dict[Any, str]) -> str | None:
    """A letter for every dimension; None where one has several factors, or size 1 beside a longer one."""
    shape: Sequence[Size] = type_of(node).shape
    found = ""
    for (term, distance), size in zip(spread(pattern, len(shape)), shape, strict=True):
        if not isinstance(term, Name | Dots) or (isinstance(term, Dots) and size == Size(1)):
            return None
        key = term.name if isinstance(term, Name) else distance
        letters.setdefault(key, string.ascii_letters[len(letters)])
        found += letters[key]
    return found
