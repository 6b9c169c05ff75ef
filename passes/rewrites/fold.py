"""`fold`: values that depend on parameters alone are computed once and stored.

    y = linear(x, slice(w, 0, 0, 4))        ->      y = linear(x, w)        # the small w is stored

The result owns its tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import copy_node
from anytimeify.analysis.stored_elements import base, fits, identity, stored
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, Size, TensorType, names
from anytimeify.ir.node_meta import is_masked
from anytimeify.passes.rewrites.project import project

__all__ = ["evaluate", "fold", "read_tensor"]


@rewrite("fold")
def fold(program: Program, *, computed: bool = True, copied: bool = True) -> Program:
    """A new program that owns its tensors and computes nothing that could be known beforehand.

    1. Every node that depends on `get_attr` nodes alone, through deterministic operations, is evaluated once; where
       the rest of the graph reads it, a `get_attr` node of the result takes its place.
    2. A selection of one parameter that fits into that parameter's shape keeps its name, if nothing else is read
       under that name: a narrowed or masked `conv1.weight` is called `conv1.weight`. Other results are called
       `folded.<node>`.
    3. A floating-point result of parameters is a parameter; every other one is a buffer.
    4. All tensors are copied, also those that are read as they are: nothing shares storage with the input program,
       and nothing holds on to a tensor larger than itself. Tensors that are tied stay tied, and so do equal parts.

    With `computed=False` only parts of parameters and masked weights are evaluated, and results of buffers. With
    `copied=False` tensors are views of the program's wherever they can be, for who only reads them.

    Left alone: random operations, operations whose result differs between training and evaluation, creations of
    constants from nothing (`arange`, `zeros`), and what would hold more elements than it is made of (a gathered table
    of relative positions, `expand`, a slice of what is read as a whole too): see `anytimeify.analysis.stored_elements`.
    """
    program = project(program, range(len(program.outputs)))
    held = stored(program, computed=computed)
    values = evaluate(program, held.nodes)
    called = _names(program, held.nodes, values)
    copies: dict[Any, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    transient: set[str] = set()
    for node, name in called.items():
        tensors[name] = _own(program, node, values[node], copies) if copied else _view(program, node, values[node])
        if name in program.transient:
            transient.add(name)

    graph = fx.Graph()
    replaced: dict[fx.Node, Any] = {}
    for node in program.placeholders:
        replaced[node] = copy_node(graph, node)
    for node, name in called.items():
        replaced[node] = read_tensor(graph, node, name, tensors[name])
    for node in held.nodes:
        if node not in called:
            replaced[node] = values[node]  # an integer: the size of a parameter
    for node in program.graph.nodes:
        if node not in held.known and node not in replaced:
            replaced[node] = copy_node(graph, node, replaced.__getitem__)
    return Program(graph, tensors, frozenset(transient))


def evaluate(program: Program, wanted: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    """The values of nodes that depend on tensors alone, and of all that they are made of."""
    needed = ancestors(wanted)
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


def _names(program: Program, held: Sequence[fx.Node], values: dict[fx.Node, Any]) -> dict[fx.Node, str]:
    """The tensors of the new program, by the node whose value they hold."""
    read = [node for node in held if isinstance(values[node], Tensor)]
    bases = {node: None if (source := base(node)) is None else str(source.target) for node in read}
    readers = Counter(bases.values())
    called: dict[fx.Node, str] = {}
    taken = {whole for whole in bases.values() if whole is not None}
    for node in read:
        whole = bases[node]
        if node.op == "get_attr":
            called[node] = str(node.target)
        elif (
            whole is not None
            and readers[whole] == 1
            and fits(_type(values[node]).shape, _type(program.tensors[whole]).shape)
        ):
            called[node] = whole
        else:
            called[node] = names.fresh("folded." + names.without_level_prefix(node.name), taken)
    return called


def _own(program: Program, node: fx.Node, value: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    """A copy of a value that is held, a parameter if it is made of parameters; one copy of what is read twice."""
    key = identity(program, node)
    if key not in copies:
        copies[key] = _like(value, value.detach().clone()) if node.op == "get_attr" else _result(program, node, value)
    return copies[key]


def _view(program: Program, node: fx.Node, value: Tensor) -> Tensor:
    """The value itself, a parameter if it is made of parameters."""
    return value if node.op == "get_attr" else _typed(program, node, value.detach())


def _result(program: Program, node: fx.Node, value: Tensor) -> Tensor:
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    if is_masked(node):
        copy[copy == 0] = 0  # a negative element times zero is a negative zero
    return _typed(program, node, copy)


def _typed(program: Program, node: fx.Node, value: Tensor) -> Tensor:
    sources = [program.tensors[str(source.target)] for source in ancestors([node]) if source.op == "get_attr"]
    parameters = [source for source in sources if isinstance(source, nn.Parameter)]
    if not parameters or not (value.is_floating_point() or value.is_complex()):
        return value
    return nn.Parameter(value, requires_grad=any(source.requires_grad for source in parameters))


def _like(source: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=source.requires_grad) if isinstance(source, nn.Parameter) else copy


def read_tensor(graph: fx.Graph, node: fx.Node, name: str, tensor: Tensor) -> fx.Node:
    """A `get_attr` node with the type of `tensor` and the origin of `node`."""
    result = graph.create_node("get_attr", name, name=names.node_name(name))
    result.meta = {**node.meta, "type": _type(tensor)}
    return result


def _type(tensor: Tensor) -> TensorType:
    return TensorType(tuple(Size(size) for size in tensor.shape), tensor.dtype)
