"""Isomorphic replicas become one operation.

    y0 = conv2d(x, w0)      ->      y = conv2d(x, w)        # the stacked parameters: twice the channels
    y1 = conv2d(x, w1)

| operation | fused form |
|---|---|
| convolution | groups times members, depthwise and 1x1 included; replicas with one parent read it without a copy |
| batch, instance and group norm | over stacked channels, groups times members |
| linear | batched matrix product |
| other sums of products | one `einsum`, the members an index more |
| layer and RMS norm | normalised together, then scaled and shifted by each member's own parameters |
| element-wise, also with parameters | broadcast along the members |
| what has no parameters | as it is, on a larger batch |

Everything else runs member by member, which is always right. Nothing but speed may change, so a rule gives None
wherever it is not sure. Which of these an operation is follows from its kind and its factor notation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Size, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound, may_be_none, rebind
from anytimeify.passes.fusion.batching_layout import Value, grown_type
from anytimeify.passes.fusion.fused_products import products
from anytimeify.passes.fusion.replicas import FuseRule, Replicas
from anytimeify.passes.fusion.sample_by_sample import sample_by_sample
from anytimeify.rules import Contraction, Kind, contractions, has_kind, notation_of, traits
from anytimeify.rules.notation import Dots, Name, Notation
from anytimeify.rules.table import tensor_operands

__all__ = ["RULES", "larger_batch"]

aten = torch.ops.aten


# Without parameters: the members are more samples.


def larger_batch(s: Replicas, node: fx.Node) -> Any:
    """The operation as it is, members outermost in the batch; None where it reads parameters of members, where the
    batch is not the outermost factor of one dimension throughout, or where samples are mixed."""
    depth = s.deepest(node)
    kinds = type_of(node)
    if not hasattr(node.target, "_schema") or not sample_by_sample(s, node):
        return None
    dims = s.axes.dims[node] if isinstance(kinds, tuple) else (s.axes.dims[node],)
    places = [s.batch_place(one) for one in dims]
    sources = {}
    for source in node.all_input_nodes:
        value = s.values[source]
        if not isinstance(type_of(source), TensorType):
            continue
        if s.find_batch(source) is not None:
            sources[source] = s.form(source, "batch", depth)
        elif value.layout == "one" and not s.has_batch(source):
            sources[source] = value.node
        else:
            return None
    each = kinds if isinstance(kinds, tuple) else (kinds,)
    grown = tuple(
        grown_type(kind, place, s.count(depth)) for kind, place in zip(each, places, strict=True) if place is not None
    )
    return s.written(node, depth, "batch", sources, grown if isinstance(kinds, tuple) else grown[0])


# Per channel: the members are more channels.


def per_channel(s: Replicas, node: fx.Node) -> Any:
    """An operation that treats every channel for itself, where its operand lies by channels; else on a larger batch."""
    if not isinstance(type_of(node), TensorType):
        return None
    depth = s.deepest(node)
    kind, first = type_of(node), node.all_input_nodes[0]
    tensors = [source for source in node.all_input_nodes if isinstance(type_of(source), TensorType)]
    if s.values[first].layout != "channel" or tensors != [first] or s.find_batch(node) != 0:
        return None
    if min(_worked_along(node), default=0) < 2:
        return None
    sources = {first: s.form(first, "channel", depth)}
    return s.written(node, depth, "channel", sources, grown_type(kind, 1, s.count(depth)))


def _worked_along(node: fx.Node) -> Sequence[int]:
    """The dimensions that a pooling, a padding or a reduction does not leave alone."""
    rank, given = len(type_of(node.all_input_nodes[0]).shape), bound(node)
    if has_kind(node, "reduction"):
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        return [int(dim) % rank for dim in dims] if dims else range(rank)
    if has_kind(node, "padding"):
        pads: Sequence[int] = given["pad"] if "pad" in given else given["padding"]
        return range(rank - len(pads) // 2, rank)
    line = notation_of(node)
    if line is None:
        return range(rank)
    return [dim for dim, term in enumerate(line.operands[0]) if term not in line.results[0]]


def reshape(s: Replicas, node: fx.Node) -> Any:
    """Parameters, and after the batch also channels, stay those of their members whatever the rest is read as."""
    first, depth = node.all_input_nodes[0], s.deepest(node)
    kind = type_of(node)
    if s.values[first].layout == "stack" and all(size.static for size in kind.shape):
        grown = grown_type(kind, 0, s.count(depth))
        args = (s.form(first, "stack", depth), [size.coefficient for size in grown.shape])
        return Value(depth, "stack", (s.emit(aten.reshape.default, args, node.name),))
    if s.values[first].layout != "channel" or len(kind.shape) < 2 or s.find_batch(node) != 0:
        return None
    if kind.shape[0] != type_of(first).shape[0] or not _says_sizes(node):
        return None
    sources = {first: s.form(first, "channel", depth)}
    return s.written(node, depth, "channel", sources, grown_type(kind, 1, s.count(depth)))


def _says_sizes(node: fx.Node) -> bool:
    """Whether a reshape has arguments that are sizes, or merges dimensions whatever their sizes are."""
    given = bound(node)
    return any(name in given for name in ("size", "sizes", "shape", "start_dim"))


# Element by element, with parameters of members or without.


def pointwise(s: Replicas, node: fx.Node) -> Any:
    """Operands of one layout as they are; otherwise a dimension of members is set beside the batch of each operand."""
    if not isinstance(type_of(node), TensorType) or traits(node).resize is not None:
        return None
    depth = s.deepest(node)
    tensors = [source for source in node.all_input_nodes if isinstance(type_of(source), TensorType)]
    if len(tensors) == 1 and s.values[tensors[0]].layout == "stack" and type_of(tensors[0]).shape:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: s.form(source, "stack", depth))
        return Value(depth, "stack", (s.emit(node.target, args, node.name, kwargs=kwargs),))
    lead = next((source for source in tensors if s.values[source].layout in ("batch", "channel")), None)
    if lead is None or s.find_batch(node) is None:
        return None
    layout = s.values[lead].layout
    kind = type_of(node)
    if layout == "channel" and (s.find_batch(node) != 0 or len(kind.shape) < 2):
        layout = "batch"
    plain = [source for source in tensors if _broadcasts_freely(s, source, layout, node)]
    if len(plain) == len(tensors):
        sources = {
            source: s.form(source, layout, depth) if s.has_batch(source) else s.values[source].node
            for source in tensors
        }
        place = 1 if layout == "channel" else s.batch_dim(node)
        return s.written(node, depth, layout, sources, grown_type(kind, place, s.count(depth)))
    place = 1 if layout == "channel" else s.batch_dim(node)
    wide = {source: _beside_batch(s, source, node, place, layout, depth) for source in tensors}
    if any(one is None for one in wide.values()):
        return None
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: wide.get(source) or s.values[source].node)
    result = s.emit(node.target, args, f"{node.name}_wide", kwargs=kwargs)
    return Value(depth, layout, (s.flatten(result, place, node.name),))


def _broadcasts_freely(s: Replicas, source: fx.Node, layout: str, node: fx.Node) -> bool:
    """Whether an operand may be read as it is beside others of the layout."""
    value, shape = s.values[source], type_of(source).shape
    rank = len(type_of(node).shape)
    if s.find_batch(source) is not None:
        if layout == "channel":  # (n, 1, h, w) gives way to all channels of a member, which lie side by side
            return len(shape) == rank and shape[1] == type_of(node).shape[1]
        return len(shape) - s.batch_dim(source) == rank - s.batch_dim(node)
    if value.layout != "one" or s.has_batch(source):
        return False
    return layout == "batch" or len(shape) < rank - 1 or shape[len(shape) - rank + 1] == Size(1)


def _beside_batch(s: Replicas, source: fx.Node, node: fx.Node, place: int, layout: str, depth: int) -> fx.Node | None:
    """An operand with a dimension more, at `place` of the result's rank: its members, or one element for all."""
    rank, count = len(type_of(node).shape), s.count(depth)
    value, shape = s.values[source], type_of(source).shape
    lead = rank - len(shape)  # dimensions that broadcasting adds in front
    if s.find_batch(source) is not None:
        if len(shape) - s.batch_dim(source) != rank - s.batch_dim(node):
            return None
        if layout == "channel":
            if lead:
                return None
            if value.layout == "one":
                return s.unsqueeze(value.node, 1, source.name)
            return s.unflatten(s.form(source, "channel", depth), 1, count, source.name)
        if value.layout == "one":
            return s.unsqueeze(value.node, place - lead, source.name)
        return s.unflatten(s.form(source, "batch", depth), place - lead, count, source.name)
    if s.has_batch(source):
        return None
    if value.layout == "one":
        return s.unsqueeze(value.node, place - lead, source.name) if place > lead else value.node
    stack = s.form(source, "stack", depth)
    node_ = s.unflatten(stack, 0, count, source.name) if shape else stack
    for _ in range(lead):
        node_ = s.unsqueeze(node_, 1, source.name)
    before = type_of(node_).shape[1 : place + 1]
    if any(size != Size(1) for size in before):
        for dim in range(place):
            node_ = s.transpose(node_, dim, dim + 1, source.name)
        return node_
    for _ in range(place):  # the dimensions of one entry that stand between the members and their place
        node_ = s.squeeze(node_, 1, source.name)
    for _ in range(place):
        node_ = s.unsqueeze(node_, 0, source.name)
    return node_


# Convolutions and norms over stacked channels.


def layer(s: Replicas, node: fx.Node) -> Any:
    """With weights of members: groups of channels where the operation has groups, otherwise products."""
    for one in contractions(node):
        if s.values[one.weight].layout != "one" and not s.has_batch(one.weight):
            return grouped(s, node, one) if traits(node).groups is not None else products(s, node, one)
    return None


def grouped(s: Replicas, node: fx.Node, layer: Contraction) -> Any:
    depth = s.deepest(node)
    given, argument = bound(node), traits(node).groups
    x, weight, bias = layer.input, layer.weight, layer.bias
    if s.find_batch(x) != 0 or s.find_batch(node) != 0 or layer.read != 1 or layer.given != 1 or argument is None:
        return None
    groups, members = given[argument], s.count(depth)
    parents = s.count(s.values[x].depth)
    shared = groups == 1 and layer.columns != 0 and members % parents == 0
    if shared and s.values[x].layout == "one":
        source, groups = s.values[x].node, 1
    elif shared and s.tree.members(depth) // s.tree.members(s.values[x].depth) == members // parents:
        source, groups = s.form(x, "channel", s.values[x].depth), parents
    else:
        source, groups = s.form(x, "channel", depth), groups * members
    own = {x: source, weight: s.form(weight, "stack", depth)}
    if bias is not None:
        own[bias] = s.form(bias, "stack", depth)
    args, kwargs = fx.map_arg(rebind(_target(node), {**given, argument: groups}), own.__getitem__)
    return Value(depth, "channel", (s.emit(node.target, args, node.name, kwargs=kwargs),))


def _target(node: fx.Node) -> Any:
    return node.target


def norm(s: Replicas, node: fx.Node) -> Any:
    """Of channels, or of the last dimensions, as its line says."""
    line = notation_of(node)
    if line is None:
        return None
    return (last_dimensions_norm if line.operands[0][:1] == (Dots(),) else channel_norm)(s, node, line)


def channel_norm(s: Replicas, node: fx.Node, line: Notation) -> Any:
    """A norm that treats every channel for itself, or every group, and has a parameter for each channel."""
    depth, groups = s.deepest(node), traits(node).groups
    x, *parameters = tensor_operands(node)
    channel = line.operands[0][1] if len(line.operands[0]) > 1 else None
    if not isinstance(channel, Name) or (channel.mixed and groups is None) or line.results[0][1] != Name(channel.name):
        return None
    if any(pattern != (Name(channel.name),) for pattern in line.operands[1 : len(parameters) + 1]):
        return None
    if s.find_batch(x) != 0 or any(s.values[one].layout == "one" for one in parameters):
        return None
    sources = {x: s.form(x, "channel", depth), **{one: s.form(one, "stack", depth) for one in parameters}}
    if groups is None:
        return s.written(node, depth, "channel", sources, grown_type(type_of(node), 1, s.count(depth)))
    given = bound(node)
    args, kwargs = fx.map_arg(
        rebind(_target(node), {**given, groups: given[groups] * s.count(depth)}), sources.__getitem__
    )
    return Value(depth, "channel", (s.emit(node.target, args, node.name, kwargs=kwargs),))


# Norms over the last dimensions: the affine part is each member's own.


def last_dimensions_norm(s: Replicas, node: fx.Node, line: Notation) -> Any:
    """Without scale and shift on a larger batch, then scaled and shifted."""
    depth, given, members = s.deepest(node), bound(node), s.count(s.deepest(node))
    x, *parameters = tensor_operands(node)
    names = (traits(node).scale, traits(node).shift)
    affine = {name: given[name] for name in names if name is not None and given.get(name) is not None}
    place, kind = s.find_batch(x), type_of(node)
    if place is None or place >= len(kind.shape) - len(line.operands[0]) + 1 or set(parameters) != set(affine.values()):
        return None
    if not all(may_be_none(_target(node), name) for name in affine) or not _of_last_dimensions(line, len(parameters)):
        return None
    if any(s.values[one].layout == "one" or s.has_batch(one) for one in parameters):
        return None
    without = {**given, **dict.fromkeys(affine)}
    args, kwargs = fx.map_arg(rebind(_target(node), without), {x: s.form(x, "batch", depth)}.__getitem__)
    result = s.emit(node.target, args, f"{node.name}_plain", kwargs=kwargs)
    if not affine:
        return Value(depth, "batch", (result,))
    result = s.unflatten(result, place, members, node.name)
    for name, one in affine.items():
        own = s.unflatten(s.form(one, "stack", depth), 0, members, one.name)
        for _ in range(len(kind.shape) - place - len(type_of(one).shape)):
            own = s.unsqueeze(own, 1, one.name)
        target = aten.mul.Tensor if name == traits(node).scale else aten.add.Tensor
        result = s.emit(target, (result, own), f"{node.name}_own")
    return Value(depth, "batch", (s.flatten(result, place, node.name),))


def _of_last_dimensions(line: Notation, count: int) -> bool:
    """Whether the first parameters have the last dimensions of what is normalised, and it keeps all of its own."""
    plain = [
        tuple(replace(term, mixed=False) if isinstance(term, Name) else term for term in one) for one in line.operands
    ]
    return line.results[0] == plain[0] and all(one and one == plain[0][-len(one) :] for one in plain[1 : count + 1])


# Joining and parting along channels.


def cat(s: Replicas, node: fx.Node) -> Any:
    depth = s.deepest(node)
    tensors: list[fx.Node] = list(bound(node)["tensors"])
    dim = int(bound(node)["dim"]) % len(type_of(node).shape)
    if len(type_of(tensors[0]).shape) != len(type_of(node).shape):  # a stack: a dimension more
        return None
    if dim == 0 or any(s.find_batch(one) != 0 for one in tensors):
        return None
    if not any(s.values[one].layout == "channel" for one in tensors):
        return None
    wide = [s.form(one, "channel", depth) for one in tensors]
    if dim > 1:
        return Value(depth, "channel", (s.emit(node.target, (wide, dim), node.name),))
    split = [s.unflatten(one, 1, s.count(depth), source.name) for one, source in zip(wide, tensors, strict=True)]
    result = s.emit(node.target, (split, 2), f"{node.name}_wide")
    return Value(depth, "channel", (s.flatten(result, 1, node.name),))


RULES: dict[Kind, FuseRule] = {
    "pooling": per_channel,
    "reduction": per_channel,
    "padding": per_channel,
    "reshape": reshape,
    "pointwise": pointwise,
    "cast": pointwise,
    "dropout": pointwise,
    "random": pointwise,
    "factory": pointwise,
    "layer": layer,
    "norm": norm,
    "join": cat,
}
