"""Products with weights as layers, and what tensors are: parameters, buffers, or numbers.

MatMul(x, w), w a tensor of [in, out] that only products read      ->      Linear(x, w'), w' of [out, in]
Add(MatMul(x, w), b)                                               ->      Linear(x, w', b)
Gemm(x, w, c)                                                      ->      Gemm(x, w', c, transB=1)
LSTM(x, W, R, B, ...)       ->      Recurrent(x, ..., a weight of torch's layer for each of its gates' tensors)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anytimeify.capture.sources.onnx.graph import Array, Graph, Node, nodes_of, readers
from anytimeify.capture.sources.onnx.table import Row
from anytimeify.errors import CaptureError
from anytimeify.ir import names

__all__ = ["roles_of", "with_layers"]


def with_layers(graph: Graph, path: str) -> Graph:
    """The graph, whose tensors are all in the outermost one, with layers of torch's."""
    graph = _recurrent_layers(_linear_layers(_apart(graph)), path)
    used = readers(graph)
    return replace(graph, tensors={name: one for name, one in graph.tensors.items() if name in used})


Rewrite = Callable[[Sequence[Node]], list[Node]]


def _everywhere(graph: Graph, rewrite: Rewrite) -> Graph:
    """The graph with its list of nodes rewritten, and those of inner graphs."""

    def inner(value: Any) -> Any:
        return _everywhere(value, rewrite) if isinstance(value, Graph) else value

    nodes = [
        replace(node, attributes={name: inner(value) for name, value in node.attributes.items()})
        for node in rewrite(graph.nodes)
    ]
    return replace(graph, nodes=tuple(nodes))


def _apart(graph: Graph) -> Graph:
    """Weights of which all elements are equal, and which several nodes read, as one for each: exporters write equal
    tensors once, and before training all scales of norms are ones. A shared layer is no longer told from that."""
    reads = readers(graph)
    shared = {name for name, one in graph.tensors.items() if reads.get(name, 0) > 1 and _is_uniform(one)}
    tensors, taken = dict(graph.tensors), set(graph.tensors)

    def own(name: str) -> str:
        if name not in shared:
            return name
        other = names.fresh(name, taken)
        tensors[other] = graph.tensors[name]
        return other

    def rewrite(nodes: Sequence[Node]) -> list[Node]:
        return [replace(node, inputs=tuple(map(own, node.inputs))) for node in nodes]

    return replace(_everywhere(graph, rewrite), tensors=tensors)


def _is_uniform(tensor: Array) -> bool:
    return tensor.dtype.kind == "f" and tensor.size > 1 and bool((tensor == tensor.flat[0]).all())


def _linear_layers(graph: Graph) -> Graph:
    reads = readers(graph)
    products = [node for node in nodes_of(graph) if _multiplies(node) and _is_matrix(graph, node.inputs[1])]
    counts = Counter(node.inputs[1] for node in products)
    weights = {name for name, count in counts.items() if count == reads[name]}
    tensors = {name: np.ascontiguousarray(one.T) if name in weights else one for name, one in graph.tensors.items()}

    def rewrite(nodes: Sequence[Node]) -> list[Node]:
        found: list[Node] = []
        places: dict[str, int] = {}  # of products without a bias, by what they give
        for node in nodes:
            if _multiplies(node) and node.inputs[1] in weights:
                places[node.outputs[0]] = len(found)
                found.append(_linear(node))
            elif (added := _bias(node, graph, found, places, reads)) is not None:
                place, bias = added
                found[place] = replace(found[place], inputs=(*found[place].inputs, bias), outputs=node.outputs)
            else:
                found.append(node)
        return found

    return replace(_everywhere(graph, rewrite), tensors=tensors)


def _is_matrix(graph: Graph, name: str) -> bool:
    tensor = graph.tensors.get(name)
    return tensor is not None and tensor.ndim == 2 and tensor.dtype.kind == "f"


def _bias(
    node: Node, graph: Graph, found: Sequence[Node], places: Mapping[str, int], reads: Mapping[str, int]
) -> tuple[int, str] | None:
    """Where a node adds a vector to what a product alone gives: the product's place, and the vector."""
    if node.operator != "Add" or node.domain:
        return None
    for one, other in (node.inputs, node.inputs[::-1]):
        bias = graph.tensors.get(other)
        if one in places and reads[one] == 1 and bias is not None:
            product = found[places[one]]
            width = graph.tensors[product.inputs[1]].shape[1]
            if product.operator == "Linear" and len(product.inputs) == 2 and bias.shape == (width,):
                return places[one], other
    return None


def _multiplies(node: Node) -> bool:
    return not node.domain and (
        node.operator == "MatMul" or (node.operator == "Gemm" and not node.attributes.get("transB", 0))
    )


def _linear(node: Node) -> Node:
    if node.operator == "Gemm":
        return replace(node, attributes={**node.attributes, "transB": 1})
    return replace(node, operator="Linear")


# Recurrent layers. ONNX has the gates of an LSTM as i, o, f, c, torch as i, f, g, o; those of a GRU as z, r, h, and
# torch as r, z, n.

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _recurrent_layers(graph: Graph, path: str) -> Graph:
    tensors = dict(graph.tensors)

    def rewrite(nodes: Sequence[Node]) -> list[Node]:
        return [_recurrent(node, graph, tensors, path) if _is_recurrent(node, graph) else node for node in nodes]

    return replace(_everywhere(graph, rewrite), tensors=tensors)


def _is_recurrent(node: Node, graph: Graph) -> bool:
    """Whether a node is a recurrent layer whose weights are tensors of the graph."""
    return node.operator in _GATES and not node.domain and all(n in graph.tensors for n in node.inputs[1:4] if n)


def _recurrent(node: Node, graph: Graph, tensors: dict[str, Array], path: str) -> Node:
    kind, given = node.operator, dict(node.attributes)
    inputs = (*node.inputs, *[""] * 8)[:8]
    direction = given.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    functions = tuple(given.get("activations") or _ACTIVATIONS[kind] * count)
    plain = kind == "RNN" and functions in (("Relu",) * count, ("Tanh",) * count)
    peepholes = graph.tensors.get(inputs[7]) if inputs[7] else None
    unread = [name for name in ("clip", "input_forget", "activation_alpha", "activation_beta") if given.get(name)]
    if functions != _ACTIVATIONS[kind] * count and not plain:
        unread.append(f"activations={list(functions)}")
    if inputs[7] and (peepholes is None or np.any(peepholes)):
        unread.append("peepholes")
    if unread:
        raise CaptureError(f"{node} of '{path}' is not read: {', '.join(unread)}.")
    weights = list(_weights(node, kind, graph, tensors))
    common = {"layout": given.get("layout", 0)}
    if kind == "GRU" and not given.get("linear_before_reset", 0):
        backwards = [direction == "reverse"] if count == 1 else [False, True]
        own = (inputs[0], inputs[4], inputs[5], *weights)
        return replace(node, operator="GruResetFirst", inputs=own, attributes={**common, "backwards": backwards})
    options = {
        **common,
        "kind": functions[0] if kind == "RNN" else kind,
        "backwards": direction == "reverse",
        "directions": count,
        "biases": bool(inputs[3]),
    }
    return replace(
        node, operator="Recurrent", inputs=(inputs[0], inputs[4], inputs[5], inputs[6], *weights), attributes=options
    )


def _weights(node: Node, kind: str, graph: Graph, tensors: dict[str, Array]) -> Iterator[str]:
    """Writes the tensors of each direction, and gives their names."""
    inputs = (*node.inputs, *[""] * 8)
    size = graph.tensors[inputs[2]].shape[2]
    order = np.concatenate([np.arange(size) + gate * size for gate in _GATES[kind]])
    zeros = kind == "GRU" and not node.attributes.get("linear_before_reset", 0)
    for number in range(graph.tensors[inputs[1]].shape[0]):
        suffix = "_reverse" if number else ""
        for place, what in ((1, "weight_ih"), (2, "weight_hh")):
            name = f"{inputs[place]}.{what}{suffix}"
            tensors[name] = graph.tensors[inputs[place]][number][order]
            yield name
        if not inputs[3] and not zeros:
            continue
        bias = graph.tensors[inputs[3]][number] if inputs[3] else np.zeros(2 * order.size, np.float32)
        for half, what in ((bias[: order.size], "bias_ih"), (bias[order.size :], "bias_hh")):
            name = f"{inputs[3] or inputs[1]}.{what}{suffix}"
            tensors[name] = half[order]
            yield name


# What tensors are.

_WEIGHTED = {
    *("Conv", "ConvTranspose", "Linear", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization"),
    *("LayerNormalization", "GroupNormalization", "PRelu"),
}
_ALL_WEIGHTS = {"Recurrent": 4, "GruResetFirst": 3}  # and the first input that is one


def roles_of(graph: Graph, rows: Callable[[Node], Row]) -> dict[str, str]:
    """Tensors that are more than known values: "parameter", "buffer", or "constant", which is also known.

    Parameters are floating-point tensors of several elements, and those of layers; but not running statistics, masks
    (zeros, and what takes a score out), and what is read as sizes. Single numbers elsewhere are constants such as an
    epsilon, which nobody can tell from a learned scale."""
    statistics, weights, data, numbers = set[str](), set[str](), set[str](), set[str]()
    for node in reversed(list(nodes_of(graph))):
        row, first = rows(node), _ALL_WEIGHTS.get(node.operator, 1)
        asked = row.sizes is not None and node.outputs[0] in numbers and node.operator not in ("Shape", "Size")
        for place, name in enumerate(node.inputs):
            if place in row.numbers or asked:
                numbers.add(name)
            elif node.operator == "BatchNormalization" and place > 2:
                statistics.add(name)
            elif (node.operator in _WEIGHTED or node.operator in _ALL_WEIGHTS) and place >= first:
                weights.add(name)
            else:
                data.add(name)
    data.update(graph.outputs)
    found: dict[str, str] = {}
    for name, tensor in graph.tensors.items():
        floating = tensor.dtype.kind in "fV"
        if name in numbers:
            role = "constant" if tensor.size > 1 and name in data else ""
        elif name in statistics:
            role = "buffer"
        elif floating and (name in weights or (name in data and tensor.size > 1 and not _is_mask(tensor))):
            role = "parameter"
        else:
            role = "constant" if tensor.size > 1 and name in data | weights else ""
        if role:
            found[name] = role
    return found


def _is_mask(tensor: Array) -> bool:
    if tensor.dtype.kind != "f":
        return False
    if not np.isfinite(tensor).all():
        return True
    low, high = float(tensor.min()), float(tensor.max())
    return high == 0 and low <= -50 and bool(np.isin(tensor, (low, 0)).all())
