"""`fold`: evaluate what depends on parameters alone."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import OpOverload
from anytimeify.ir import Program, Size, TensorType
from anytimeify.passes.project import ancestors
from anytimeify.schema import bound, is_mutable

__all__ = ["deterministic", "evaluate", "fold", "fresh_name", "read_tensor"]

aten = torch.ops.aten

# Operations that select elements of their first argument.
_SELECTIONS = frozenset(
    {
        aten.slice.Tensor,
        aten.select.int,
        aten.narrow.default,
        aten.index_select.default,
    }
)
# Operations that give their first argument, some of its entries zero, where they say how many they keep.
_MASKED = frozenset({aten.mul.Tensor, aten.add.Tensor})
# Views of all elements in another shape: they cost nothing when the graph runs.
_RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.unsqueeze.default,
    }
)
_TRANSPOSITIONS = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
# Views that repeat elements: evaluating them would store what now costs nothing.
_GROWING = frozenset(
    {
        aten.expand.default,
        aten.expand_as.default,
        aten.broadcast_to.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.tile.default,
    }
)


def fold(program: Program) -> Program:
    """A new program that owns its tensors and computes nothing that could be known beforehand.

    1. Every node that depends on `get_attr` nodes alone, through deterministic operations, is evaluated once; where
       the rest of the graph reads it, a `get_attr` node of the result takes its place.
    2. A selection of one parameter that fits into that parameter's shape keeps its name, if nothing else is read
       under that name: a narrowed or masked `conv1.weight` is called `conv1.weight`. Other results are called
       `folded.<node>`.
    3. A floating-point result of parameters is a parameter; every other one is a buffer.
    4. All tensors are copied, also those that are read as they are: nothing shares storage with the input program,
       and nothing holds on to a tensor larger than itself. Tensors that are tied stay tied.

    Left alone: random operations, operations whose result differs between training and evaluation, creations of
    constants from nothing (`arange`, `zeros`), and at the frontier whatever is larger than all that it is made of (a
    gathered table of relative positions, `expand`): an extract never holds more than it reads.
    """
    constant = _constants(program.graph)
    frontier = [node for node in program.graph.nodes if node in constant and not constant.issuperset(node.users)]
    values = evaluate(program, frontier)
    names = _names(program, frontier, values)
    copies: dict[int, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    transient: set[str] = set()
    for node, name in names.items():
        tensors[name] = _own(program, node, values[node], copies)
        if name in program.transient:
            transient.add(name)

    graph = fx.Graph()
    replaced: dict[fx.Node, Any] = {}
    for node in program.placeholders:
        replaced[node] = graph.node_copy(node)
    for node, name in names.items():
        replaced[node] = read_tensor(graph, node, name, tensors[name])
    for node in frontier:
        if node not in names:
            replaced[node] = values[node]  # an integer: the size of a parameter
    for node in program.graph.nodes:
        if node not in constant and node not in replaced:
            replaced[node] = graph.node_copy(node, replaced.__getitem__)
    return Program(graph, tensors, frozenset(transient))


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes to evaluate or to read as they are; what they feed is computed when the program runs."""
    constant: set[fx.Node] = set()
    source: dict[fx.Node, int] = {}  # elements of the largest tensor that a node is made of
    for node in graph.nodes:
        if node.op == "get_attr" or (deterministic(node) and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
            inputs = [source[one] for one in node.all_input_nodes]
            source[node] = max(inputs, default=_elements(node) if node.op == "get_attr" else 0)
    for node in reversed(graph.nodes):
        if node not in constant or node.op == "get_attr":
            continue
        live = _elements(node) > source[node] or node.target in _GROWING or _only_reshapes(node)
        if live and not constant.issuperset(node.users):
            constant.discard(node)
    return constant


def _elements(node: fx.Node) -> int:
    kind = node.meta.get("type")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return sum(one.size.coefficient for one in kinds if isinstance(one, TensorType))


def _only_reshapes(node: fx.Node) -> bool:
    """Whether a node gives a parameter, or a part of one, another shape: without it the parameter keeps its name."""
    if node.target in _TRANSPOSITIONS:
        return _base(node.all_input_nodes[0]) is not None
    base = _base(node)
    return node.target in _RESHAPES and base is not None and not _fits(node.meta["type"].shape, base.meta["type"].shape)


def deterministic(node: fx.Node) -> bool:
    """Whether a call always gives the same result for the same arguments, in training and in evaluation."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    if node.target.namespace != "aten" or is_mutable(node.target) or "empty" in str(node.target):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or node.target is aten.dropout.default:
        return False
    # Batch norm with running statistics; without them it standardises weights and has one meaning only.
    return node.target is not aten.batch_norm.default or bound(node)["running_mean"] is None


def evaluate(program: Program, frontier: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    """The values of nodes that depend on tensors alone, and of all that they are made of."""
    needed = ancestors(frontier)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node not in needed:
                continue
            if node.op == "get_attr":
                values[node] = program.tensors[str(node.target)]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values


def _names(program: Program, frontier: list[fx.Node], values: dict[fx.Node, Any]) -> dict[fx.Node, str]:
    """The tensors of the new program, by the node whose value they hold."""
    read = [node for node in frontier if isinstance(values[node], Tensor)]
    bases = {node: None if (source := _base(node)) is None else str(source.target) for node in read}
    readers = Counter(bases.values())
    names: dict[fx.Node, str] = {}
    taken = {base for base in bases.values() if base is not None}
    for node in read:
        base = bases[node]
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif (
            base is not None
            and readers[base] == 1
            and _fits(_type(values[node]).shape, _type(program.tensors[base]).shape)
        ):
            names[node] = base
        else:
            names[node] = fresh_name("folded." + re.sub(r"^level\d+_", "", node.name), taken)
    return names


def _base(node: fx.Node) -> fx.Node | None:
    """The `get_attr` node that a chain of selections, reshapes and masks starts from."""
    while node.op == "call_function":
        masked = node.target in _MASKED and "kept" in node.meta
        if not masked and node.target not in _SELECTIONS and node.target not in _RESHAPES:
            return None
        node = node.all_input_nodes[0]
    return node


def _fits(shape: Sequence[Size], base: Sequence[Size]) -> bool:
    pairs = zip(shape, base, strict=False)
    return len(shape) == len(base) and all(size.coefficient <= limit.coefficient for size, limit in pairs)


def fresh_name(name: str, taken: set[str]) -> str:
    """`name`, numbered if it is taken; the result is taken from then on."""
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


def _own(program: Program, node: fx.Node, value: Tensor, copies: dict[int, Tensor]) -> Tensor:
    """A copy of a frontier value, a parameter if it is made of parameters; one copy of what is read under two names."""
    if node.op == "get_attr":
        if id(value) not in copies:
            copies[id(value)] = _like(value, value.detach().clone())
        return copies[id(value)]
    sources = [program.tensors[str(source.target)] for source in ancestors([node]) if source.op == "get_attr"]
    parameters = [source for source in sources if isinstance(source, nn.Parameter)]
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    if "kept" in node.meta:
        copy[copy == 0] = 0  # a negative entry times zero is a negative zero
    if not parameters or not copy.is_floating_point():
        return copy
    return nn.Parameter(copy, requires_grad=any(source.requires_grad for source in parameters))


def _like(source: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=source.requires_grad) if isinstance(source, nn.Parameter) else copy


def read_tensor(graph: fx.Graph, node: fx.Node, name: str, tensor: Tensor) -> fx.Node:
    """A `get_attr` node with the type of `tensor` and the origin of `node`."""
    result = graph.create_node("get_attr", name, name=name.replace(".", "_"))
    result.meta = {**node.meta, "type": _type(tensor)}
    return result


def _type(tensor: Tensor) -> TensorType:
    return TensorType(tuple(Size(size) for size in tensor.shape), tensor.dtype)
