"""`fold_batch_norms`: merge batch norms into the convolutions before them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify import names
from anytimeify.ir import Program
from anytimeify.node_meta import type_of
from anytimeify.pass_manager import rewrite
from anytimeify.passes.fold import read_tensor
from anytimeify.schema import bound, rebind

__all__ = ["fold_batch_norms"]

aten = torch.ops.aten

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


@rewrite("fold batch norms")
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
        name: read_tensor(graph, convolution, name, tensor)
        for convolution, parameters in folded.items()
        for name, tensor in parameters.items()
    }
    for convolution, parameters in folded.items():  # what a masked weight lacks it still lacks
        masked = bound(convolution)["weight"].meta
        reads[next(iter(parameters))].meta |= {key: masked[key] for key in ("kept", "blocks") if key in masked}
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
    if convolution.target is aten.linear.default and len(type_of(convolution).shape) != 2:
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
    bias_name = own_bias or names.fresh(names.bias(name), taken)
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
