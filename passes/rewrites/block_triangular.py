"""`use_blocks`: a layer with a block-triangular mask becomes a triangular layer, which may multiply only the blocks.

    y = linear(x, mul(w, mask))     ->      y = triangular_linear(x, w, None, rows, columns, levels)

The numbers are the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import ancestors, descendants
from anytimeify.ir import Program
from anytimeify.ir.node_meta import mask_nonzeros_of, type_of, weight_blocks_of
from anytimeify.ir.schema import rebind
from anytimeify.kernels import ends_of, staircase
from anytimeify.rules import Call, has_kind, traits

__all__ = ["use_blocks"]

SMALLEST = 64  # rows or columns; below, calling an operator of ours takes longer than what blocks save


@rewrite("use blocks")
def use_blocks(program: Program, outputs: Sequence[int], *, smallest: int = SMALLEST) -> Program:
    """The program with the layers that `outputs` need in their fast form; other outputs are computed as before.

    1. `conv(x, mul(W, mask))` and `linear(x, mul(W, mask))` read `W` itself, as `anytimeify::triangular_conv` and
       `anytimeify::triangular_linear`. The levels are those of `meta["blocks"]` of the masked weight, for each the rows
       that it adds and the columns that they read. Names, types and origins stay.
    2. A node that outputs of both kinds need is there twice, and the one of the others has `_masked` after its name.
    3. Masked weights, and masks, that nothing reads any more are left out.

    A layer stays dense where it has fewer than `smallest` rows or columns, where its weight says nothing of blocks or
    the mask is not that of the blocks, where it has groups or no batch, and where its padding is `"same"` and not the
    same on both sides. The result is the same up to rounding.
    """
    last = len(program.outputs)
    chosen = {position % last for position in outputs}
    fast = [node for position, node in enumerate(program.outputs) if position in chosen]
    rest = ancestors([node for position, node in enumerate(program.outputs) if position not in chosen])
    calls = {node: call for node in ancestors(fast) if (call := _fast_call(node, smallest)) is not None}
    if not calls:
        return program
    changed = descendants(calls) & ancestors(fast)
    graph = fx.Graph()
    ours: dict[fx.Node, fx.Node] = {}
    theirs: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if node not in changed:  # what only other outputs need reads theirs
            ours[node] = theirs[node] = copy_node(graph, node, theirs.__getitem__)
            continue
        ours[node] = theirs[node] = copy_node(graph, node, ours.__getitem__)
        if node in rest:
            arguments = fx.map_arg((node.args, node.kwargs), theirs.__getitem__)
            theirs[node] = graph.create_node(node.op, node.target, *arguments, name=f"{node.name}_masked")
            theirs[node].meta = dict(node.meta)
        if node in calls:
            target, values, kept = calls[node]
            ours[node].target = target
            ours[node].args, ours[node].kwargs = fx.map_arg(rebind(target, values), ours.__getitem__)
            ours[node].meta = {**node.meta, "weight_nonzeros": kept}
    results = [(ours if position in chosen else theirs)[node] for position, node in enumerate(program.outputs)]
    graph.output(tuple(results)).meta = dict(program.graph.output_node().meta)
    return _without_leftovers(program, graph)


def _fast_call(node: fx.Node, smallest: int) -> tuple[Any, dict[str, Any], int] | None:
    """The operator that a layer becomes, its arguments, and how many elements of its weight exist; None if it stays."""
    form = traits(node).triangular
    call: Call | None = form(node) if form is not None else None
    product = call.arguments["weight"] if call is not None else None
    if call is None or product is None or not has_kind(product, "pointwise") or not weight_blocks_of(product):
        return None
    levels = _levels(product)
    if levels is None or min(size.coefficient for size in type_of(product).shape[:2]) < smallest:
        return None
    return call.target, {**call.arguments, "weight": product.args[0], **levels}, mask_nonzeros_of(product)


def _levels(product: fx.Node) -> dict[str, Any] | None:
    """The levels of a masked weight as the operators take them."""
    height, width, *kernel = (size.coefficient for size in type_of(product).shape)
    rows = [np.asarray(own, dtype=np.int64) for own, _ in weight_blocks_of(product)]
    read = [np.asarray(own, dtype=np.int64) for _, own in weight_blocks_of(product)]
    columns = [np.setdiff1d(now, before) for now, before in zip(read, [read[0][:0], *read], strict=False)]
    unread = np.setdiff1d(np.arange(width), read[-1])
    if len(unread):
        rows, columns = [*rows, rows[0][:0]], [*columns, unread]
    if sum(map(len, rows)) != height or sum(map(len, columns)) != width:
        return None
    ends = ends_of(rows), ends_of(columns)
    if staircase(height, width, *ends, len(rows)).kept * math.prod(kernel) != mask_nonzeros_of(product):
        return None
    return {"rows": list(ends[0]), "columns": list(ends[1]), "levels": len(rows)}


def _without_leftovers(program: Program, graph: fx.Graph) -> Program:
    """What nothing reads is left out: calls, and tensors that were read before."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)
    before, now = ({node.target for node in one.find_nodes(op="get_attr")} for one in (program.graph, graph))
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in now or name not in before}
    return Program(graph, tensors, program.transient & tensors.keys())
