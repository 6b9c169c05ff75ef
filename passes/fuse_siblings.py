"""`fuse_siblings`: isomorphic siblings become one operation.

| operation | fused form |
|---|---|
| convolution | groups times members, depthwise and 1x1 included; siblings of one parent read it without a copy of it |
| batch, instance and group norm | over stacked channels, groups times members |
| linear | batched matrix product |
| layer and RMS norm | normalised together, then scaled and shifted by each member's own |
| element-wise, also with parameters | broadcast along the members |
| what has no parameters | as it is, on a larger batch |

Everything else runs member by member, which is always right. Nothing but speed may change, so a rule gives None
wherever it is not sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from anytimeify.ir import Size, TensorType
from anytimeify.node_meta import type_of
from anytimeify.passes.layouts import Value, grown_type
from anytimeify.passes.sample_by_sample import RESHAPES, sample_by_sample
from anytimeify.passes.siblings import FuseRule, Siblings
from anytimeify.rules.pointwise import BINARY, DROPOUTS, RANDOM, UNARY
from anytimeify.rules.targets import aten as targets
from anytimeify.schema import bound, rebind

__all__ = ["RULES", "larger_batch"]

aten = torch.ops.aten
RULES: dict[Any, FuseRule] = {}


def as_target(node: fx.Node) -> Any:
    """The operation of a call."""
    return node.target


def _register(these: Sequence[Any], rule: FuseRule) -> None:
    RULES.update(dict.fromkeys(these, rule))


# Without parameters: the members are more samples.


def larger_batch(s: Siblings, node: fx.Node) -> Any:
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


def per_channel(s: Siblings, node: fx.Node) -> Any:
    """An operation that treats every channel for itself, where its operand lies by channels; else on a larger batch."""
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
    rank = len(type_of(node.all_input_nodes[0]).shape)
    if node.target in _REDUCTIONS:
        dims = bound(node)["dim"]
        return [int(dim) % rank for dim in dims] if dims else range(rank)
    given = bound(node)
    pads = given.get("pad", given.get("padding")) if node.target in _PADS else None
    count = len(pads) // 2 if pads is not None else _SPATIAL[node.target]
    return range(rank - count, rank)


_SPATIAL = {
    target: count
    for count, upsample in ((1, ("nearest", "linear")), (2, ("nearest", "bilinear", "bicubic")), (3, ("nearest",)))
    for target in targets(
        *(f"{kind}_pool{count}d" for kind in ("max", "avg", "adaptive_avg")),
        *(f"upsample_{kind}{count}d" for kind in upsample),
    )
}
_REDUCTIONS = targets("mean.dim", "sum.dim_IntList", "amax.default", "amin.default")
_PADS = targets("pad.default", "constant_pad_nd.default", "reflection_pad2d.default", "replication_pad2d.default")
_register([*_SPATIAL, *_REDUCTIONS, *_PADS], per_channel)


def reshape(s: Siblings, node: fx.Node) -> Any:
    """Parameters, and behind the batch also channels, stay those of their members whatever the rest is read as."""
    first, depth = node.all_input_nodes[0], s.deepest(node)
    kind = type_of(node)
    if s.values[first].layout == "stack" and all(size.static for size in kind.shape):
        grown = grown_type(kind, 0, s.count(depth))
        args = (s.form(first, "stack", depth), [size.coefficient for size in grown.shape])
        return Value(depth, "stack", (s.emit(aten.reshape.default, args, node.name),))
    if node.target not in _CHANNEL_RESHAPES or s.values[first].layout != "channel" or len(kind.shape) < 2:
        return None
    if s.find_batch(node) != 0 or kind.shape[0] != type_of(first).shape[0]:
        return None
    sources = {first: s.form(first, "channel", depth)}
    return s.written(node, depth, "channel", sources, grown_type(kind, 1, s.count(depth)))


_CHANNEL_RESHAPES = targets("view.default", "reshape.default", "flatten.using_ints", "unflatten.int")
_register(RESHAPES, reshape)


# Element by element, with parameters of members or without.


def pointwise(s: Siblings, node: fx.Node) -> Any:
    """Operands of one layout as they are; otherwise a dimension of members is set beside the batch of each operand."""
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


def _broadcasts_freely(s: Siblings, source: fx.Node, layout: str, node: fx.Node) -> bool:
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


def _beside_batch(s: Siblings, source: fx.Node, node: fx.Node, place: int, layout: str, depth: int) -> fx.Node | None:
    """An operand with a dimension more, at `place` of the result's rank: its members, or one entry for all."""
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


_register(targets(*UNARY, *BINARY, *RANDOM, *DROPOUTS, "add", "sub", "mul", "div"), pointwise)


# Convolutions and norms over stacked channels.


def convolution(s: Siblings, node: fx.Node) -> Any:
    depth = s.deepest(node)
    given = bound(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    rank = len(type_of(node).shape)
    if s.find_batch(x) != 0 or s.find_batch(node) != 0 or rank != len(type_of(weight).shape):
        return None
    if s.values[weight].layout == "one" or s.has_batch(weight):
        return None
    groups, members = given["groups"], s.count(depth)
    parents = s.count(s.values[x].depth)
    shared = groups == 1 and "transpose" not in str(node.target) and members % parents == 0
    if shared and s.values[x].layout == "one":
        source, groups = s.values[x].node, 1
    elif shared and s.tree.members(depth) // s.tree.members(s.values[x].depth) == members // parents:
        source, groups = s.form(x, "channel", s.values[x].depth), parents
    else:
        source, groups = s.form(x, "channel", depth), groups * members
    arguments = {**given, "input": source, "weight": s.form(weight, "stack", depth), "groups": groups}
    if bias is not None:
        arguments["bias"] = s.form(bias, "stack", depth)
    args, kwargs = rebind(as_target(node), arguments)
    return Value(depth, "channel", (s.emit(node.target, args, node.name, kwargs=kwargs),))


_register(targets(*(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))), convolution)


def channel_norm(s: Siblings, node: fx.Node) -> Any:
    depth = s.deepest(node)
    given = bound(node)
    tensors = ("weight", "bias", "running_mean", "running_var")
    read = {name: given[name] for name in tensors if given.get(name) is not None}
    if s.find_batch(given["input"]) != 0 or any(s.values[one].layout == "one" for one in read.values()):
        return None
    members = s.count(depth)
    arguments = {**given, "input": s.form(given["input"], "channel", depth)}
    arguments.update({name: s.form(one, "stack", depth) for name, one in read.items()})
    if "num_groups" in given:
        arguments["num_groups"] = given["num_groups"] * members
    args, kwargs = rebind(as_target(node), arguments)
    return Value(depth, "channel", (s.emit(node.target, args, node.name, kwargs=kwargs),))


_register(targets("batch_norm.default", "instance_norm.default", "group_norm.default"), channel_norm)


# Linear layers as batched matrix products.


def linear(s: Siblings, node: fx.Node) -> Any:
    depth = s.deepest(node)
    given = bound(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    place, members = s.find_batch(x), s.count(depth)
    kind = type_of(node)
    if place is None or place == len(kind.shape) - 1 or len(type_of(weight).shape) != 2:
        return None
    if s.values[weight].layout == "one" or s.has_batch(weight):
        return None
    if any(not size.static for dim, size in enumerate(kind.shape) if dim != place):
        return None
    rows = s.unflatten(s.form(x, "batch", depth), place, members, x.name)
    for dim in range(place, 0, -1):
        rows = s.transpose(rows, dim - 1, dim, x.name)
    middle = type_of(rows).shape[1:-1]
    rows = s.flatten_all(rows, 1, -2, x.name)
    matrix = s.transpose(s.unflatten(s.form(weight, "stack", depth), 0, members, weight.name), 1, 2, weight.name)
    if bias is None:
        result = s.emit(aten.bmm.default, (rows, matrix), f"{node.name}_product")
    else:
        shift = s.unflatten(s.form(bias, "stack", depth), 0, members, bias.name)
        shift = s.unsqueeze(shift, 1, bias.name)
        result = s.emit(aten.baddbmm.default, (shift, rows, matrix), f"{node.name}_product")
    if len(middle) > 1:
        inner = [size.coefficient if size.static else -1 for size in middle]
        result = s.emit(aten.unflatten.int, (result, 1, inner), f"{node.name}_rows")
    for dim in range(place):
        result = s.transpose(result, dim, dim + 1, node.name)
    return Value(depth, "batch", (s.flatten(result, place, node.name),))


_register(targets("linear.default"), linear)


def addmm(s: Siblings, node: fx.Node) -> Any:
    """`bias + x @ weight`, as some write a linear layer."""
    depth = s.deepest(node)
    given = bound(node)
    x, weight, bias = given["mat1"], given["mat2"], given["self"]
    members = s.count(depth)
    if s.find_batch(x) != 0 or given["beta"] != 1 or given["alpha"] != 1 or len(type_of(bias).shape) != 1:
        return None
    if any(s.values[one].layout == "one" or s.has_batch(one) for one in (weight, bias)):
        return None
    rows = s.unflatten(s.form(x, "batch", depth), 0, members, x.name)
    matrix = s.unflatten(s.form(weight, "stack", depth), 0, members, weight.name)
    shift = s.unsqueeze(s.unflatten(s.form(bias, "stack", depth), 0, members, bias.name), 1, bias.name)
    result = s.emit(aten.baddbmm.default, (shift, rows, matrix), f"{node.name}_product")
    return Value(depth, "batch", (s.flatten(result, 0, node.name),))


_register(targets("addmm.default"), addmm)


# Norms over the last dimensions: the affine part is each member's own.


def last_dimensions_norm(s: Siblings, node: fx.Node) -> Any:
    depth = s.deepest(node)
    given = bound(node)
    x, parameters = given["input"], [given.get("weight"), given.get("bias")]
    place, kind = s.find_batch(x), type_of(node)
    count = len(given["normalized_shape"])
    if place is None or place >= len(kind.shape) - count:
        return None
    if any(one is not None and (s.values[one].layout == "one" or s.has_batch(one)) for one in parameters):
        return None
    arguments = {**given, "input": s.form(x, "batch", depth), "weight": None, "bias": None}
    args, kwargs = rebind(as_target(node), {name: value for name, value in arguments.items() if name in given})
    members = s.count(depth)
    result = s.emit(node.target, args, f"{node.name}_plain", kwargs=kwargs)
    if any(one is not None for one in parameters):
        result = s.unflatten(result, place, members, node.name)
        for target, one in zip((aten.mul.Tensor, aten.add.Tensor), parameters, strict=True):
            if one is not None:
                own = s.unflatten(s.form(one, "stack", depth), 0, members, one.name)
                for _ in range(len(kind.shape) - place - count):
                    own = s.unsqueeze(own, 1, one.name)
                result = s.emit(target, (result, own), f"{node.name}_own")
        result = s.flatten(result, place, node.name)
    return Value(depth, "batch", (result,))


_register(targets("layer_norm.default", "rms_norm.default"), last_dimensions_norm)


# Joining and parting along channels.


def cat(s: Siblings, node: fx.Node) -> Any:
    depth = s.deepest(node)
    tensors: list[fx.Node] = list(bound(node)["tensors"])
    dim = int(bound(node)["dim"]) % len(type_of(node).shape)
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


_register(targets("cat.default"), cat)
