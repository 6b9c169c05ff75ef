"""`fold`: evaluate what depends on parameters alone; `fold_batch_norms`: merge batch norms into convolutions."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import OpOverload
from anytimeify.ir import Program, Size, TensorType
from anytimeify.passes.project import ancestors
from anytimeify.schema import bound, is_mutable, rebind

__all__ = ["fold", "fold_batch_norms"]

aten = torch.ops.aten

# Operations that only select or regroup elements of their first argument.
_SELECTIONS = frozenset(
    {
        aten.slice.Tensor,
        aten.select.int,
        aten.narrow.default,
        aten.index_select.default,
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
       under that name: a narrowed `conv1.weight` is called `conv1.weight`. Other results are called `folded.<node>`.
    3. A floating-point result of parameters is a parameter; every other one is a buffer.
    4. All tensors are copied, also those that are read as they are: nothing shares storage with the input program,
       and nothing holds on to a tensor larger than itself. Tensors that are tied stay tied.

    Left alone: random operations, operations whose result differs between training and evaluation, creations of
    constants from nothing (`arange`, `zeros`), and views that only repeat elements (`expand`) at the frontier.
    """
    constant = _constants(program.graph)
    frontier = [node for node in program.graph.nodes if node in constant and not constant.issuperset(node.users)]
    values = _evaluate(program, frontier)
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
        replaced[node] = _read(graph, node, name, tensors[name])
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
    for node in graph.nodes:
        if node.op == "get_attr" or (_deterministic(node) and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    for node in reversed(graph.nodes):
        if node not in constant or node.op == "get_attr":
            continue
        cheap = node.target in _GROWING or not node.all_input_nodes
        if cheap and not constant.issuperset(node.users):
            constant.discard(node)
    return constant


def _deterministic(node: fx.Node) -> bool:
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


def _evaluate(program: Program, frontier: list[fx.Node]) -> dict[fx.Node, Any]:
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
    bases = {node: _base(node) for node in read}
    readers = Counter(bases.values())
    names: dict[fx.Node, str] = {}
    taken = {base for base in bases.values() if base is not None}
    for node in read:
        base = bases[node]
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif base is not None and readers[base] == 1 and _fits(values[node].shape, program.tensors[base].shape):
            names[node] = base
        else:
            names[node] = _fresh("folded." + re.sub(r"^level\d+_", "", node.name), taken)
    return names


def _base(node: fx.Node) -> str | None:
    """The tensor that a chain of selections starts from."""
    while node.op == "call_function":
        if node.target not in _SELECTIONS:
            return None
        node = node.all_input_nodes[0]
    return str(node.target)


def _fits(shape: torch.Size, base: torch.Size) -> bool:
    return len(shape) == len(base) and all(size <= limit for size, limit in zip(shape, base, strict=True))


def _fresh(name: str, taken: set[str]) -> str:
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
    if not parameters or not copy.is_floating_point():
        return copy
    return nn.Parameter(copy, requires_grad=any(source.requires_grad for source in parameters))


def _like(source: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=source.requires_grad) if isinstance(source, nn.Parameter) else copy


def _read(graph: fx.Graph, node: fx.Node, name: str, tensor: Tensor) -> fx.Node:
    result = graph.create_node("get_attr", name, name=name.replace(".", "_"))
    result.meta = {**node.meta, "type": _type(tensor)}
    return result


def _type(tensor: Tensor) -> TensorType:
    return TensorType(tuple(Size(size) for size in tensor.shape), tensor.dtype)


# Convolutions and linear layers, with the weight's dimension that holds the output channels.
_CONVOLUTIONS: dict[Any, int] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    aten.conv1d.padding: 0,
    aten.conv2d.padding: 0,
    aten.conv3d.padding: 0,
    aten.linear.default: 0,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
}


def fold_batch_norms(program: Program) -> Program:
    """A new program in which batch norms are part of the convolution or linear layer before them.

    For a convolution `y = W x + b` with no other reader than a batch norm with statistics (m, v), scale g and shift h:

        W' = W * g / sqrt(v + eps)        b' = (b - m) * g / sqrt(v + eps) + h

    along the output channels, in double precision. The weight keeps its name, the bias is called like the
    convolution's bias. Meant for inference: batch statistics are gone.

    Left alone: convolutions with other readers or with computed or shared weights, batch norms without running
    statistics, and linear layers whose output has positions (batch norm then normalises along those).
    """
    tensors = dict(program.tensors)
    merged = {norm: convolution for norm in program.graph.nodes if (convolution := _foldable(norm)) is not None}
    taken = set(tensors)
    folded = {convolution: _merge(program, convolution, norm, taken) for norm, convolution in merged.items()}
    for parameters in folded.values():
        tensors.update(parameters)

    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.placeholders:
        copies[node] = graph.node_copy(node)
    for node in _still_read(program, folded, merged):
        copies[node] = graph.node_copy(node)
    reads = {
        name: _read(graph, convolution, name, tensor)
        for convolution, parameters in folded.items()
        for name, tensor in parameters.items()
    }
    for node in program.graph.nodes:
        if node in merged:
            copies[node] = copies[merged[node]]
        elif node in folded:
            weight, bias = (reads[name] for name in folded[node])
            given = bound(node)
            args, kwargs = rebind(
                node.target, {**given, "input": copies[given["input"]], "weight": weight, "bias": bias}
            )
            copies[node] = graph.create_node("call_function", node.target, args, kwargs, node.name)
            copies[node].meta = dict(node.meta)
        elif node.op not in ("placeholder", "get_attr"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    read = {node.target for node in graph.find_nodes(op="get_attr")}
    kept = {name: tensor for name, tensor in tensors.items() if name in read}
    return Program(graph, kept, program.transient & kept.keys())


def _foldable(norm: fx.Node) -> fx.Node | None:
    """The convolution that a batch norm can be merged into."""
    if norm.op != "call_function" or norm.target is not aten.batch_norm.default:
        return None
    arguments = bound(norm)
    convolution = arguments["input"]
    if convolution.op != "call_function" or convolution.target not in _CONVOLUTIONS or len(convolution.users) != 1:
        return None
    if arguments["running_mean"] is None or arguments["running_var"] is None:
        return None
    if convolution.target is aten.linear.default and len(convolution.meta["type"].shape) != 2:
        return None
    given = bound(convolution)
    if not isinstance(given["weight"], fx.Node) or len(given["weight"].users) != 1:
        return None
    read = [arguments[name] for name in ("weight", "bias", "running_mean", "running_var")] + [
        given["weight"],
        given["bias"],
    ]
    return convolution if all(node is None or node.op == "get_attr" for node in read) else None


def _merge(program: Program, convolution: fx.Node, norm: fx.Node, taken: set[str]) -> dict[str, Tensor]:
    """Names and values of the merged weight and bias, in that order."""

    def value(node: fx.Node | None, default: float) -> Tensor:
        if node is None:
            return torch.full_like(mean, default)
        return program.tensors[str(node.target)].detach().double()

    given, arguments = bound(convolution), bound(norm)
    weight = program.tensors[given["weight"].target]
    mean = program.tensors[arguments["running_mean"].target].detach().double()
    scale = value(arguments["weight"], 1.0) / (value(arguments["running_var"], 1.0) + arguments["eps"]).sqrt()
    bias = (value(given["bias"], 0.0) - mean) * scale + value(arguments["bias"], 0.0)
    if _CONVOLUTIONS[convolution.target] == 0:
        factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # weight (in, out / groups, ...): channels of group j follow one another, in rows and in the output
        rows = weight.shape[0] // given["groups"]
        per_group = scale.reshape(given["groups"], 1, -1).expand(-1, rows, -1)
        factor = per_group.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))
    name = str(given["weight"].target)
    own_bias = str(given["bias"].target) if given["bias"] is not None and len(given["bias"].users) == 1 else None
    bias_name = own_bias or _fresh(re.sub(r"weight$", "", name) + "bias", taken)
    merged = {name: (weight.detach().double() * factor), bias_name: bias}
    return {
        key: nn.Parameter(tensor.to(weight.dtype).contiguous(), requires_grad=weight.requires_grad)
        for key, tensor in merged.items()
    }


def _still_read(
    program: Program, folded: dict[fx.Node, dict[str, Tensor]], merged: dict[fx.Node, fx.Node]
) -> Iterable[fx.Node]:
    """The `get_attr` nodes that something other than a merged pair reads."""
    gone = {*folded, *merged}
    return (node for node in program.graph.find_nodes(op="get_attr") if not gone.issuperset(node.users))
