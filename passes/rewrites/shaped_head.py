"""A head that gives predictions of the network's own shape from features anywhere in it.

    features [b, 64, 8, 8] -> 1x1 convolution -> [b, 5, 8, 8] -> interpolation -> [b, 5, 32, 32]    dense prediction
    features [b, t, 64] -> linear -> [b, t, 5]                                                      sequences
    features [b, 64, t] -> mean over t -> linear -> [b, 12] -> [b, 12, 1]                           vectors

It needs no fork that all data passes: the features are one tensor among others. Where the prediction has positions
(pixels, tokens, samples), the head is one layer for every position, after which they are interpolated linearly; a row
of tokens is taken for a grid of the prediction's proportions. Where it has none, positions are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from anytimeify._torch import operator
from anytimeify.analysis.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, Size, TensorType, names, type_text
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.passes.rewrites.pooled_head import enumerates_positions
from anytimeify.passes.rewrites.resized_inputs import RESIZE
from anytimeify.passes.rewrites.taxonomy import heads_of_output

__all__ = ["ShapedHead"]

aten = torch.ops.aten
_LARGEST = 1 << 14  # elements of a prediction without positions
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class _Layout:
    """Which dimensions of a tensor count positions, and which one its channels (of predictions, None: it has none)."""

    kind: TensorType
    positions: tuple[int, ...]
    channels: int | None

    @property
    def grid(self) -> tuple[Size, ...]:
        return tuple(self.kind.shape[dim] for dim in self.positions)

    @property
    def width(self) -> int:
        return 1 if self.channels is None else self.kind.shape[self.channels].coefficient


@dataclass(frozen=True)
class ShapedHead:
    """The head that reads one tensor; `of` says whether there is one, a call appends it."""

    at: fx.Node
    prediction: fx.Node
    features: _Layout
    result: _Layout

    @staticmethod
    def of(program: Program, axes: Axes, at: fx.Node) -> ShapedHead:
        """Raises `SchemeError` where no such head fits the features."""
        prediction, kind = program.outputs[0], type_of(at)
        result = _result_layout(program, axes, prediction)
        features = _feature_layout(axes, at) if isinstance(kind, TensorType) else None
        if features is None or kind.shape[:1] != result.kind.shape[:1] or not kind.shape[features.channels].static:
            raise SchemeError(
                f"a pooled head needs features with the batch first and one dimension of channels; those of {at.name} "
                f"are {type_text(kind)}; fork elsewhere"
            )
        if kind.dtype != result.kind.dtype or not kind.dtype.is_floating_point:
            raise SchemeError(f"a pooled head needs features of the prediction's type; {at.name} is {kind.dtype}")
        head = ShapedHead(at, prediction, features, result)
        if result.positions and head._grid() is None:
            raise SchemeError(
                f"a pooled head cannot make {_shape(result.kind)} of {_shape(kind)} ({at.name}): they have "
                "other positions; fork elsewhere"
            )
        return head

    @staticmethod
    def refusal(program: Program, axes: Axes) -> str:
        """Why no features have a head; nothing if that depends on them."""
        try:
            _result_layout(program, axes, program.outputs[0])
        except SchemeError as error:
            return str(error)
        return ""

    def _grid(self) -> tuple[Size, ...] | None:
        """The positions of the features in as many dimensions as the prediction has; None where they have others."""
        have, wanted = self.features.grid, self.result.grid
        if have == wanted:
            return have
        if not all(size.static for size in (*have, *wanted)):
            return None
        if len(have) == len(wanted):
            return have
        if len(have) != 1:
            return None
        count, total = have[0].coefficient, math.prod(size.coefficient for size in wanted)
        side = (count / total) ** (1 / len(wanted))
        sides = [round(size.coefficient * side) for size in wanted]
        return tuple(map(Size, sides)) if math.prod(sides) == count else None

    def __call__(self, builder: Builder, level: int) -> fx.Node:
        """Appends the head and gives its prediction; its layer is `anytime.<level>.pooled`, initialised as torch does
        it, one for each granularity of the prediction."""
        made = _Made(builder, level, self.at)
        return self._dense(made) if self.result.positions else self._vector(made)

    def _vector(self, made: _Made) -> fx.Node:
        node = made.shared
        if self.features.positions:
            node = made.call(aten.mean.dim, (node, list(self.features.positions)), "average")
        shape = [size.coefficient for size in self.result.kind.shape[1:]]
        if len(shape) == 1:
            return self._scores(made, node, aten.linear.default, nn.Linear, 1)
        layer = nn.Linear(self.features.width, math.prod(shape))
        node = made.layer(aten.linear.default, node, layer, "")
        return made.call(aten.unflatten.int, (node, 1, shape), "shaped")

    def _dense(self, made: _Made) -> fx.Node:
        """Channels first, one layer for every position, the prediction's positions, and its order of dimensions."""
        grid, wanted = self._grid(), self.result.grid
        assert grid is not None  # by `of`
        assert self.features.channels is not None
        last = len(self.result.kind.shape) - 1
        if grid == wanted and self.features.channels == last and self.result.channels == last:
            return self._scores(made, made.shared, aten.linear.default, nn.Linear, last)
        node = made.permuted(made.shared, [0, self.features.channels, *self.features.positions], "channels_first")
        if len(self.features.positions) != len(grid):
            node = made.call(aten.unflatten.int, (node, 2, [size.coefficient for size in grid]), "grid")
        layer, target = _CONVOLUTIONS[len(grid)], operator("aten", f"conv{len(grid)}d", "default")
        node = self._scores(made, node, target, lambda n, classes: layer(n, classes, 1), 1)
        if grid != wanted:
            size = [one.coefficient for one in wanted]
            node = made.call(RESIZE["bilinear"][len(size)], (node, size, False, None), "interpolated")
        if self.result.channels is None:
            return made.call(aten.squeeze.dim, (node, 1), "shaped")
        here = [0, self.result.channels, *self.result.positions]
        return made.permuted(node, [here.index(dim) for dim in range(len(here))], "shaped")

    def _scores(self, made: _Made, node: fx.Node, target: Any, layer: Any, dim: int) -> fx.Node:
        parts = heads_of_output(self.prediction) if self.result.channels == 1 else (("", self.result.width),)
        scores = [made.layer(target, node, layer(self.features.width, classes), prefix) for prefix, classes in parts]
        return scores[0] if len(scores) == 1 else made.call(aten.cat.default, (scores, dim), "granularities")


@dataclass(frozen=True)
class _Made:
    """What is appended to a builder."""

    builder: Builder
    level: int
    at: fx.Node

    @property
    def shared(self) -> fx.Node:
        return self.builder.shared[self.at]

    def call(self, target: object, args: tuple[object, ...], name: str) -> fx.Node:
        return self.builder.call(
            target, args, {}, names.level_prefix(self.level) + name, {"origin": origin_of(self.at)}
        )

    def permuted(self, node: fx.Node, order: Sequence[int], name: str) -> fx.Node:
        return node if list(order) == sorted(order) else self.call(aten.permute.default, (node, list(order)), name)

    def layer(self, target: Any, node: fx.Node, layer: nn.Module, prefix: str) -> fx.Node:
        device = next((tensor.device for tensor in self.builder.tensors.values()), torch.device("cpu"))
        layer = layer.to(device, type_of(self.at).dtype)
        read = [
            self.builder.attribute(names.of_level(self.level, f"{prefix}pooled.{name}"), parameter, self.at)
            for name, parameter in layer.named_parameters()
        ]
        return self.call(target, (node, *read), "pooled")


def _layout(axes: Axes, node: fx.Node) -> _Layout | None:
    kind, dims = type_of(node), axes.dims[node]
    positions = tuple(dim for dim in range(1, len(dims)) if enumerates_positions(dims[dim]))
    channels = [dim for dim in range(1, len(dims)) if dim not in positions]
    return _Layout(kind, positions, channels[0]) if len(channels) == 1 else None


def _feature_layout(axes: Axes, node: fx.Node) -> _Layout | None:
    """That of features; if all dimensions are the input's own, images have channels first and sequences last."""
    rank = len(type_of(node).shape)
    if rank > 1 and all(enumerates_positions(expr) for expr in axes.dims[node][1:]):
        channels = 1 if rank > 3 else rank - 1
        return _Layout(type_of(node), tuple(dim for dim in range(1, rank) if dim != channels), channels)
    return _layout(axes, node)


def _result_layout(program: Program, axes: Axes, prediction: fx.Node) -> _Layout:
    """That of the prediction: channels first where it is an image or a volume of an input's proportions, else as the
    analysis sees it; a vector otherwise."""
    kind, found = type_of(prediction), _layout(axes, prediction)
    rank = len(kind.shape)
    if rank in (4, 5) and any(_same_proportions(type_of(node), kind) for node in program.placeholders):
        return _Layout(kind, tuple(range(2, rank)), 1)
    if found is not None and (found.positions or rank == 2):
        return found
    if rank > 2 and all(enumerates_positions(expr) for expr in axes.dims[prediction][1:]):
        return _Layout(kind, tuple(range(1, rank)), None)
    if rank < 2 or not all(size.static for size in kind.shape[1:]) or kind.size.coefficient > _LARGEST:
        raise SchemeError(
            "a pooled head gives class scores, vectors, sequences or images of a known size for every sample, and the "
            f"prediction of this network is {_shape(kind)}"
        )
    return _Layout(kind, (), 1 if rank == 2 else None)


def _same_proportions(one: TensorType, other: TensorType) -> bool:
    """Whether two are images or volumes of the same proportions, maybe of other sizes."""
    if len(one.shape) != len(other.shape) or not all(size.static for size in (*one.shape[2:], *other.shape[1:])):
        return one.shape[2:] == other.shape[2:] and other.shape[1].static
    ratios = {b.coefficient / a.coefficient for a, b in zip(one.shape[2:], other.shape[2:], strict=True)}
    return len(ratios) == 1


def _shape(kind: TensorType) -> str:
    return f"[{', '.join(map(str, kind.shape))}]"
