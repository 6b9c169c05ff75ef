"""What a program costs for one sample, read off the axis rules: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from anytimeify.analysis.stored_elements import Stored, identity, needed, stored
from anytimeify.ir import Captured, Cost, Program, Size, TensorType, result_of
from anytimeify.ir.node_meta import is_masked, mask_nonzeros_of, type_of, weight_nonzeros_of
from anytimeify.rules import traits

__all__ = ["cost", "macs_by_node", "sizes"]


def cost(
    program: Program,
    batch: str | None,
    batch_size: int = 1,
    symbols: Mapping[str, int] | None = None,
    *,
    outputs: Sequence[fx.Node] | None = None,
) -> Cost:
    """The cost of everything that the program's outputs need, or some of them, in inference: of what an extract holds
    and computes (`anytimeify.analysis.stored_elements`), masked weights by what is left of them.

    `batch` names the dynamic batch size; where it is None the batch is fixed at `batch_size` and the cost is divided by
    it. `symbols` gives values to further dynamic sizes (a dynamic resolution).
    """
    outputs = program.outputs if outputs is None else outputs
    nodes, held = needed(program, outputs), stored(program, outputs=outputs)
    count = _Counter(batch, 1 if batch else max(1, batch_size), symbols or {})
    macs = macs_by_node(program, batch, batch_size, symbols, nodes=nodes)
    return Cost(
        sum(found for node, found in macs.items() if node not in held.known),
        _parameters(program, held, nodes),
        _peak(nodes, outputs, held, count),
    )


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
    for node in nodes if nodes is not None else needed(program):
        rule = traits(node)
        if rule.macs is not None:
            macs = rule.macs(node)
            if macs != Size(0):
                result[node] = _left(node, count(macs))
    return result


def _left(node: fx.Node, macs: int) -> int:
    """What is left of a node's multiply-accumulates where weights are masked: every element has an equal share, also of
    the several matrices of a recurrent layer."""
    masked = [source for source in node.all_input_nodes if is_masked(source)]
    if not masked:
        return macs
    nonzeros: int = sum(mask_nonzeros_of(source) for source in masked)
    total: int = sum(type_of(source).size.coefficient for source in masked)
    return macs * nonzeros // total


def sizes(captured: Captured) -> tuple[int, dict[str, int]]:
    """The batch size and the dynamic sizes of the example inputs, as `cost` takes them."""
    symbols: dict[str, int] = {}
    for node, tensor in zip(captured.program.placeholders, captured.example_inputs, strict=True):
        for size, value in zip(type_of(node).shape, tensor.shape, strict=True):
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


def _parameters(program: Program, held: Stored, nodes: Mapping[fx.Node, None]) -> int:
    """Elements of the parameters that are held, tied ones and equal parts once."""
    counted = {
        identity(program, node): _nonzeros(node, nodes)
        for node in held.nodes
        if node in held.parameters and isinstance(type_of(node), TensorType)
    }
    return sum(counted.values())


def _nonzeros(node: fx.Node, nodes: Mapping[fx.Node, None]) -> int:
    """Elements of a tensor; those that its mask keeps, or that its triangular layers among `nodes` have."""
    users = [user for user in node.users if user in nodes]
    triangular = [
        count for user in users if user.args[1:2] == (node,) and (count := weight_nonzeros_of(user)) is not None
    ]
    if triangular and len(triangular) == len(users):
        return max(triangular)
    return mask_nonzeros_of(node)


def _peak(nodes: Mapping[fx.Node, None], outputs: Sequence[fx.Node], known: Stored, count: _Counter) -> int:
    """The largest total of intermediate results that are alive at once, in graph order; views belong to what they
    view.
    """
    owner: dict[fx.Node, fx.Node] = {}
    held: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        views = traits(node).view or result_of(node) is not None
        source = node.all_input_nodes[0] if views and node.all_input_nodes else None
        owner[node] = owner[source] if source is not None else node
        nothing = source is not None or node in known.known
        held[node] = 0 if nothing else _bytes(type_of(node), count)
        for read in node.all_input_nodes:
            last[owner[read]] = place
        last[owner[node]] = place
    for node in outputs:
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
