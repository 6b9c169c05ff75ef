"""What views are: which share memory, which show their whole operand, and how a write through one is written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from anytimeify._torch import OpOverload, schema
from anytimeify.ir.schema import bound, is_mutable
from anytimeify.rules.op import Call
from anytimeify.rules.spellings import gives_its_operand
from anytimeify.rules.table import has_kind

__all__ = ["copies_where_it_has_to", "memory_of", "part_put_back", "put_back"]

aten = torch.ops.aten

PutBack: TypeAlias = Callable[[Mapping[str, Any], fx.Node, fx.Node], Call | None]
"""From the arguments of a view, its new value, and the whole before, to the whole after."""


def memory_of(target: object) -> str | None:
    """The argument whose memory the first result of an operation may share, by its schema."""
    if not isinstance(target, OpOverload):
        return None
    returns = schema(target).returns
    if not returns or returns[0].alias_info is None:
        return None
    return next((one.name for one in schema(target).arguments if one.alias_info is not None), None)


_COPIES = {aten.reshape.default, aten.flatten.using_ints, aten.reshape_as.default, aten.unflatten.int}


def copies_where_it_has_to(target: object) -> bool:
    """Whether an operation is a view where strides allow one, and a copy elsewhere."""
    return target in _COPIES


def _slice(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call:
    where = {name: given[name] for name in ("dim", "start", "end", "step")}
    return Call(aten.slice_scatter.default, {"self": whole, "src": value, **where})


def _narrow(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call | None:
    start, length = given["start"], given["length"]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    where = {"dim": given["dim"], "start": start, "end": start + length if start >= 0 or start + length < 0 else None}
    return Call(aten.slice_scatter.default, {"self": whole, "src": value, **where})


def _diagonal(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call:
    where = {name: given[name] for name in ("offset", "dim1", "dim2")}
    return Call(aten.diagonal_scatter.default, {"self": whole, "src": value, **where})


def _select(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call:
    where = {name: given[name] for name in ("dim", "index")}
    return Call(aten.select_scatter.default, {"self": whole, "src": value, **where})


def _transpose(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call:
    return Call(aten.transpose.int, {"self": value, "dim0": given["dim0"], "dim1": given["dim1"]})


def _permute(given: Mapping[str, Any], value: fx.Node, whole: fx.Node) -> Call:
    rank = len(given["dims"])
    inverse = sorted(range(rank), key=lambda position: given["dims"][position] % rank)
    return Call(aten.permute.default, {"self": value, "dims": inverse})


_PUT_BACK: Mapping[object, PutBack] = {
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.diagonal.default: _diagonal,
    aten.select.int: _select,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
}


def put_back(view: fx.Node, value: fx.Node, whole: fx.Node) -> fx.Node | Call | None:
    """What the operand of `view` is worth once that has got a `value`, where it was `whole` before; None if unknown."""
    if is_mutable(view.target) or gives_its_operand(view.target):
        return value
    if has_kind(view, "reshape"):
        return Call(aten.reshape_as.default, {"self": value, "other": whole})
    rule = _PUT_BACK.get(view.target)
    return rule(bound(view), value, whole) if rule is not None else None


def part_put_back(
    parts: fx.Node, index: int, value: fx.Node, whole: fx.Node, shapes: Sequence[Sequence[Any]]
) -> Call | None:
    """The same where the view is one of the `parts` that `chunk`, `split` or `unbind` gave, which have these shapes."""
    dim = bound(parts)["dim"]
    if parts.target is aten.unbind.int:
        return Call(aten.select_scatter.default, {"self": whole, "src": value, "dim": dim, "index": index})
    sizes = [shape[dim] for shape in shapes]
    if not all(isinstance(size, int) for size in sizes):
        return None
    start = sum(sizes[:index])
    where = {"dim": dim, "start": start, "end": start + sizes[index]}
    return Call(aten.slice_scatter.default, {"self": whole, "src": value, **where})
