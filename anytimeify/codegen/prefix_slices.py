"""Prefixes of parameters, taken together.

A graph of several widths reads prefixes of every weight. One by one, each of their gradients is filled up with zeros to
the size of the whole weight, once for every dimension that is cut, and added to the others: at small batches that takes
longer than the layers of the small widths. `prefix_slices` takes all prefixes of a weight at once and puts their
gradients together in one tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Set
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.ir.node_meta import tensor_type
from anytimeify.rules import has_kind

__all__ = ["prefix_slices", "take_prefixes_together"]


def prefix_slices(whole: Tensor, *sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """For each of `sizes` the leading part of `whole`, with so many elements of every dimension.

    Copies where gradients are wanted, views where they are not. A compiler is shown views, whose gradients it puts
    together itself."""
    if torch.is_grad_enabled() and whole.requires_grad and not torch.compiler.is_compiling():
        result: tuple[Tensor, ...] = _PrefixSlices.apply(whole, *sizes)  # type: ignore[no-untyped-call]  # of torch
        return result
    return tuple(_part(whole, size) for size in sizes)


def _part(whole: Tensor, size: tuple[int, ...]) -> Tensor:
    for dim, length in enumerate(size):
        if length < whole.shape[dim]:
            whole = whole.narrow(dim, 0, length)
    return whole


class _PrefixSlices(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(whole: Tensor, *sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(_part(whole, size).clone() for size in sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        whole, *ctx.sizes = inputs
        ctx.shape, ctx.stride = whole.shape, whole.stride()
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        known = [(size, grad) for size, grad in zip(ctx.sizes, grads, strict=True) if grad is not None]
        result: Tensor | None = None
        for size, grad in sorted(known, key=lambda one: -math.prod(one[0])):
            if result is None:
                result = _filled_up(grad, size, grad.new_empty_strided(ctx.shape, ctx.stride))
            else:
                _part(result, size).add_(grad)
        return (result, *(None for _ in ctx.sizes))


def _filled_up(part: Tensor, size: tuple[int, ...], whole: Tensor) -> Tensor:
    """Writes a prefix of a tensor, and zeros after it."""
    inside = whole
    for dim, length in enumerate(size):
        inside.narrow(dim, length, whole.shape[dim] - length).zero_()
        inside = inside.narrow(dim, 0, length)
    inside.copy_(part)
    return whole


def take_prefixes_together(graph: fx.Graph, parameters: Set[str]) -> None:
    """Replaces, in a graph of modules, the slices that read prefixes of one of its `parameters` by one call of
    `prefix_slices`."""
    for source in graph.find_nodes(op="get_attr"):
        if source.target not in parameters:
            continue
        whole = tuple(size.coefficient for size in tensor_type(source).shape)
        found = dict(_prefixes(source, whole))
        cuts = sum(one != full for size in found.values() for one, full in zip(size, whole, strict=True))
        if cuts < 2:
            continue  # one slice puts nothing together
        read = {node: size for node, size in found.items() if any(user not in found for user in node.users)}
        sizes = list(dict.fromkeys(read.values()))
        with graph.inserting_after(source):
            every = graph.call_function(prefix_slices, (source, *sizes))
        for place, size in reversed(list(enumerate(sizes))):
            with graph.inserting_after(every):
                part = graph.call_function(operator.getitem, (every, place))
            for node in [node for node, other in read.items() if other == size]:
                part.meta = dict(node.meta)
                for user in [user for user in node.users if user not in found]:
                    user.replace_input_with(node, part)
        for node in reversed(found):
            if not node.users:
                graph.erase_node(node)


def _prefixes(node: fx.Node, size: tuple[int, ...]) -> Iterator[tuple[fx.Node, tuple[int, ...]]]:
    """The slices of a node, and theirs, that read a prefix, with the sizes that they keep."""
    for user in node.users:
        if not has_kind(user, "selection") or user.kwargs or len(user.args) != 4:
            continue
        _, dim, start, end = user.args  # of a slice, or of `narrow`, which says a length: from 0 on they are the same
        if start == 0 and isinstance(dim, int) and isinstance(end, int):
            kept = (*size[:dim], min(end, size[dim]), *size[dim + 1 :])
            yield user, kept
            yield from _prefixes(user, kept)
