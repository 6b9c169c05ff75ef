"""A classifier on pooled features, the cheapest exit ("APFC": average pooling, fully connected).

    h = conv2d(x, w)        ->      h = conv2d(x, w)
                                    y = linear(flatten(adaptive_avg_pool2d(h, [4, 4]), 1), w', b')

Sequences are averaged over their tokens.
"""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, names
from anytimeify.ir.node_meta import origin_of, packed_of, type_of
from anytimeify.passes.rewrites.taxonomy import heads_of_output
from anytimeify.rules.factors import Expr, leaves, resolve

__all__ = ["enumerates_positions", "pooled_head"]

aten = torch.ops.aten
POSITIONS = 4  # a side of what images are pooled to


def pooled_head(builder: Builder, program: Program, axes: Axes, at: fx.Node, level: int) -> fx.Node:
    """Appends the head and gives its prediction; its layer is `anytime.<level>.pooled`, initialised as `nn.Linear`, one
    for each granularity of the prediction.

    Images are averaged to at most 4x4 positions, sequences to one. Raises `SchemeError` where the prediction is not one
    vector of scores a sample, or the features are not those of an image or a sequence.
    """
    prediction, kind = type_of(program.outputs[0]), type_of(at)
    if packed_of(program.outputs[0]):
        raise SchemeError("a pooled head makes one prediction, and with output='all' levels return more")
    if len(prediction.shape) != 2 or not prediction.shape[1].static:
        raise SchemeError(
            f"a pooled head gives one vector of scores a sample, and the prediction of this network has the shape "
            f"[{', '.join(map(str, prediction.shape))}]; use head='branch'"
        )
    places = [dim for dim, expr in enumerate(axes.dims[at]) if dim and enumerates_positions(expr)]
    channels = [dim for dim in range(1, len(kind.shape)) if dim not in places]
    batch = kind.shape[0]
    if batch != prediction.shape[0] or len(places) > 2 or len(channels) != 1 or not kind.shape[channels[0]].static:
        raise SchemeError(
            "a pooled head needs features of images or sequences with one dimension of channels; those of "
            f"{at.name} are [{', '.join(map(str, kind.shape))}]; fork elsewhere, or use head='branch'"
        )
    origin = origin_of(at)

    def call(target: object, args: tuple[object, ...], name: str) -> fx.Node:
        return builder.call(target, args, {}, names.level_prefix(level) + name, {"origin": origin})

    width = kind.shape[channels[0]]
    node, side = builder.shared[at], 1
    if len(places) == 2:
        if channels[0] != 1:
            node = call(aten.permute.default, (node, [0, channels[0], *places]), "channels_first")
        sides = [kind.shape[dim] for dim in places]
        heights = [min(POSITIONS, size.coefficient) if size.static else POSITIONS for size in sides]
        side = math.prod(heights)
        node = call(aten.adaptive_avg_pool2d.default, (node, heights), "average")
        node = call(aten.flatten.using_ints, (node, 1), "flat")
    elif len(places) == 1:
        node = call(aten.mean.dim, (node, places), "average")
    device = next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))
    scores = []
    for prefix, classes in heads_of_output(program.outputs[0]):
        layer = nn.Linear(width.coefficient * side, classes).to(device, kind.dtype)
        read = [
            builder.attribute(names.of_level(level, f"{prefix}pooled.{name}"), parameter, at)
            for name, parameter in layer.named_parameters()
        ]
        scores.append(call(aten.linear.default, (node, *read), "pooled"))
    return scores[0] if len(scores) == 1 else call(aten.cat.default, (scores, 1), "granularities")


def enumerates_positions(expr: Expr) -> bool:
    """Whether a dimension counts positions (pixels, tokens) and nothing else."""
    kinds = [leaf.pin.kind if leaf.pin is not None else "" for leaf in leaves(resolve(expr))]
    return bool(kinds) and all(kind in ("position", "input") for kind in kinds)
