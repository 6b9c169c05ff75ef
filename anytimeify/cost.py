"""What a program costs for one sample, read off the axis rules: nothing is run."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

from torch import fx

from anytimeify.ir import Captured, Cost, Program, Size, TensorType
from anytimeify.rules import rule_of

__all__ = ["cost", "macs_by_node", "sizes"]


def cost(program: Program, batch: str | None, batch_size: int = 1, symbols: Mapping[str, int] | None = None) -> Cost:
    """The cost of everything that the program's outputs need.

    `batch` names the dynamic batch size; where it is None the batch is fixed at `batch_size` and the cost is divided by
    it. `symbols` gives values to further dynamic sizes (a dynamic resolution).
    """
    nodes = _needed(program)
    count = _Counter(batch, 1 if batch else max(1, batch_size), symbols or {})
    macs = sum(macs_by_node(program, batch, batch_size, symbols, nodes=nodes).values())
    read = {
        id(program.tensors[str(n.target)]): n
        for n in nodes
        if n.op == "get_attr" and program.is_parameter(str(n.target))
    }
    constant = _constant(nodes)
    params = sum(_read_elements(node, nodes, constant) for node in read.values())
    return Cost(macs, params, _peak(program, nodes, count))


def macs_by_node(
    program: Program,
    batch: str | None,
    batch_size: int = 1,
    symbols: Mapping[str, int] | None = None,
    *,
    nodes: Mapping[fx.Node, None] | None = None,
) -> dict[fx.Node, int]:
    """Multiply-accumulates of every node that has some, for one sample."""
    count = _Counter(batch, 1 if batch else max(1, batch_size), symbols or {})
    result = {}
    for node in nodes if nodes is not None else _needed(program):
        rule = rule_of(node.target) if node.op == "call_function" else None
        if rule is not None and rule.macs is not None:
            macs = rule.macs(node)
            if macs != Size(0):
                result[node] = _left(node, count(macs))
    return result


def _left(node: fx.Node, macs: int) -> int:
    """What is left of a node's multiply-accumulates where weights are masked: every entry has an equal share, also of
    the several matrices of a recurrent layer."""
    masked = [source for source in node.all_input_nodes if "kept" in source.meta]
    if not masked:
        return macs
    kept: int = sum(source.meta["kept"] for source in masked)
    entries: int = sum(source.meta["type"].size.coefficient for source in masked)
    return macs * kept // entries


def sizes(captured: Captured) -> tuple[int, dict[str, int]]:
    """The batch size and the dynamic sizes of the example inputs, as `cost` takes them."""
    symbols: dict[str, int] = {}
    for node, tensor in zip(captured.program.placeholders, captured.example_inputs, strict=True):
        for size, value in zip(node.meta["type"].shape, tensor.shape, strict=True):
            if size.coefficient == 1 and len(size.symbols) == 1:
                symbols[size.symbols[0]] = value
    first = captured.example_inputs[0] if captured.example_inputs else None
    return (first.shape[0] if first is not None and first.ndim else 1), symbols


class _Counter:
    """Sizes as numbers for one sample."""

    def __init__(self, batch: str | None, divisor: int, symbols: Mapping[str, int]) -> None:
        self.batch, self.divisor, self.symbols = batch, divisor, symbols

    def __call__(self, size: Size) -> int:
        total = size.coefficient
        for symbol in size.symbols:
            total *= 1 if symbol == self.batch else self.symbols.get(symbol, 1)
        return -(-total // self.divisor)


def _needed(program: Program) -> dict[fx.Node, None]:
    """The nodes that the outputs depend on, in graph order."""
    needed: set[fx.Node] = set()
    waiting: list[fx.Node] = list(program.outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return {node: None for node in program.graph.nodes if node in needed}


def _constant(nodes: Mapping[fx.Node, None]) -> set[fx.Node]:
    """Those of some nodes that depend on tensors alone."""
    constant: set[fx.Node] = set()
    for node in nodes:
        if node.op == "get_attr" or (node.op == "call_function" and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    return constant


def _read_elements(node: fx.Node, nodes: Mapping[fx.Node, None], constant: Set[fx.Node]) -> int:
    """How many elements of a tensor are read: all, or those in the widest of the parts that `narrow` takes of it, or
    those that the widest mask keeps."""
    results = _masked_results(node, constant)
    if results:
        return int(max(result.meta["kept"] for result in results))
    widest = 0
    waiting = [node]
    while waiting:
        source = waiting.pop()
        for user in source.users:
            if user not in nodes:
                continue
            if user.meta.get("part") and user.args[0] is source:
                waiting.append(user)
            elif "kept_weight" in user.meta and user.args[1] is source:
                widest = max(widest, user.meta["kept_weight"])
            elif "kept" in user.meta:
                widest = max(widest, user.meta["kept"])
            else:
                widest = max(widest, source.meta["type"].size.coefficient)
    return widest or int(node.meta["type"].size.coefficient)


def _masked_results(node: fx.Node, constant: Set[fx.Node]) -> list[fx.Node]:
    """The masked weights that are all a tensor is used for, if they have as many elements (a weight that is
    standardised, then masked); none where something else reads it, or is made of it."""
    found: set[fx.Node] = set()
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if user in constant and "kept" in user.meta:
                found.add(user)
            elif user in constant and user not in seen:
                seen.add(user)
                waiting.append(user)
            elif user not in constant:
                return []
    return [one for one in found if one.meta["type"].size == node.meta["type"].size]


def _peak(program: Program, nodes: Mapping[fx.Node, None], count: _Counter) -> int:
    """The largest total of intermediate results that are alive at once, in graph order; views belong to what they
    view.
    """
    owner: dict[fx.Node, fx.Node] = {}
    held: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        rule = rule_of(node.target) if node.op == "call_function" else None
        views = (rule is not None and rule.view) or node.target is operator.getitem
        source = node.all_input_nodes[0] if views and node.all_input_nodes else None
        owner[node] = owner[source] if source is not None else node
        weight = node.op == "get_attr" or "kept" in node.meta
        held[node] = 0 if source is not None or weight else _bytes(node.meta.get("type"), count)
        for read in node.all_input_nodes:
            last[owner[read]] = place
        last[owner[node]] = place
    for node in program.outputs:
        last[owner[node]] = len(nodes)
    ends: dict[int, list[fx.Node]] = {}
    for node, place in last.items():
        ends.setdefault(place, []).append(node)
    peak = alive = 0
    for place, node in enumerate(nodes):
        alive += held[node]
        peak = max(peak, alive)
        alive -= sum(held[dead] for dead in ends.get(place, ()))
    return peak


def _bytes(kind: Any, count: _Counter) -> int:
    if isinstance(kind, TensorType):
        return count(kind.size) * kind.dtype.itemsize
    return sum(_bytes(one, count) for one in kind) if isinstance(kind, tuple) else 0
