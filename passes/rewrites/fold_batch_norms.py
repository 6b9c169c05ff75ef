"""`fold_batch_norms`: a batch norm becomes part of the layer before it.

    y = batch_norm(conv2d(x, w, b), g, h, m, v)     ->      y = conv2d(x, w', b')

For inference: the statistics no longer follow the batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Program, names
from anytimeify.ir.schema import bound, rebind
from anytimeify.passes.rewrites.fold import read_tensor
from anytimeify.rules import Contraction, contractions, has_kind, notation_of, traits
from anytimeify.rules.notation import Name

__all__ = ["fold_batch_norms"]


_NAMES = {"input", "weight", "bias", "running_mean", "running_var", "eps"}  # of a norm that computes what torch's does


@rewrite("fold batch norms")
def fold_batch_norms(program: Program) -> Program:
    """A new program in which batch norms are part of the layer before them: a convolution, a linear or bilinear layer.

    For a layer `y = W x + b` with no other reader than a batch norm with statistics (m, v), scale g and shift h:

        W' = W * g / sqrt(v + eps)        b' = (b - m) * g / sqrt(v + eps) + h

    along the output channels, in double precision. The weight keeps its name, the bias is called like the
    convolution's bias. Meant for inference: batch statistics are gone.

    Left alone: layers with other readers or with computed or shared weights, batch norms without running statistics,
    and linear layers whose output has positions (batch norm then normalises along those).
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
        copies[node] = copy_node(graph, node)
    for node in _still_read(program, folded, merged):
        copies[node] = copy_node(graph, node)
    reads = {
        name: read_tensor(graph, convolution, name, tensor)
        for convolution, parameters in folded.items()
        for name, tensor in parameters.items()
    }
    for convolution, parameters in folded.items():  # what a masked weight lacks it still lacks
        masked = _contraction(convolution).weight.meta
        reads[next(iter(parameters))].meta |= {key: masked[key] for key in ("mask_nonzeros", "blocks") if key in masked}
    for node in program.graph.nodes:
        if node in merged:
            copies[node] = copies[merged[node]]
        elif node in folded:
            weight, bias = (reads[name] for name in folded[node])
            given = {**bound(node), str(traits(node).bias): bias}
            new = {**copies, _contraction(node).weight: weight, bias: bias}
            args, kwargs = fx.map_arg(rebind(node.target, given), new.__getitem__)
            copies[node] = graph.create_node("call_function", node.target, args, kwargs, node.name)
            copies[node].meta = dict(node.meta)
        elif node.op not in ("placeholder", "get_attr"):
            copies[node] = copy_node(graph, node, copies.__getitem__)
    read = {node.target for node in graph.find_nodes(op="get_attr")}
    kept = {name: tensor for name, tensor in tensors.items() if name in read}
    return Program(graph, kept, program.transient & kept.keys())


def _foldable(norm: fx.Node) -> fx.Node | None:
    """The convolution that a batch norm can be merged into."""
    arguments = bound(norm)
    if not _normalises_samples(norm) or not _NAMES.issubset(arguments):
        return None
    convolution: fx.Node = arguments["input"]
    layer = _layer(convolution)
    if layer is None or layer.given != 1 or len(convolution.users) != 1 or len(layer.weight.users) != 1:
        return None
    if arguments["running_mean"] is None or arguments["running_var"] is None:
        return None
    read = [arguments[name] for name in ("weight", "bias", "running_mean", "running_var")]
    read += [layer.weight, layer.bias]
    return convolution if all(node is None or node.op == "get_attr" for node in read) else None


def _normalises_samples(node: fx.Node) -> bool:
    """Whether a node is a batch norm: a norm that takes statistics over the first dimension."""
    line = notation_of(node) if has_kind(node, "norm") else None
    return line is not None and any(isinstance(one, Name) and one.mixed for one in line.operands[0][:1])


def _layer(node: fx.Node) -> Contraction | None:
    """How a layer that adds a bias reads a weight that the program holds."""
    if traits(node).bias is None:
        return None
    return next((one for one in contractions(node) if one.weight.op == "get_attr" and one.given is not None), None)


def _contraction(convolution: fx.Node) -> Contraction:
    found = _layer(convolution)
    assert found is not None  # by `_foldable`
    return found


def _merge(program: Program, convolution: fx.Node, norm: fx.Node, taken: set[str]) -> dict[str, Tensor]:
    """Names and values of the merged weight and bias, in that order."""

    def value(node: fx.Node | None, default: float) -> Tensor:
        if node is None:
            return torch.full_like(mean, default)
        return program.tensors[str(node.target)].detach().double()

    layer, arguments = _contraction(convolution), bound(norm)
    weight = program.tensors[str(layer.weight.target)]
    mean = program.tensors[arguments["running_mean"].target].detach().double()
    scale = value(arguments["weight"], 1.0) / (value(arguments["running_var"], 1.0) + arguments["eps"]).sqrt()
    bias = (value(layer.bias, 0.0) - mean) * scale + value(arguments["bias"], 0.0)
    rows = layer.rows
    assert rows is not None
    if weight.shape[rows] == len(scale):
        factor = scale.reshape(-1, *[1] * (weight.ndim - 1 - rows))
    else:  # weight (in, out / groups, ...): channels of group j follow one another, in columns and in the output
        width = weight.shape[layer.columns] // layer.groups
        per_group = scale.reshape(layer.groups, 1, -1).expand(-1, width, -1)
        factor = per_group.reshape(weight.shape[layer.columns], -1, *[1] * (weight.ndim - 2))
    name = str(layer.weight.target)
    own_bias = str(layer.bias.target) if layer.bias is not None and len(layer.bias.users) == 1 else None
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
