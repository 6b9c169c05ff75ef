"""A network on smaller inputs: their sizes, how they are resized, and the copy that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, Size, TensorType, meta_of
from anytimeify.ir.node_meta import type_of
from anytimeify.passes.rewrites.input_sizes import Positions, positions_at
from anytimeify.passes.rewrites.interpolate import interpolated, tables
from anytimeify.passes.rewrites.narrow import Clone
from anytimeify.passes.rewrites.private_tensors import PrivateTensors

__all__ = ["RESIZE", "ResizedClone", "SmallerInputs", "resize"]

aten = torch.ops.aten
RESIZE: dict[str, dict[int, Any]] = {  # by the mode, and by the number of spatial dimensions
    "bilinear": {
        1: aten.upsample_linear1d.vec,
        2: aten.upsample_bilinear2d.vec,
        3: aten.upsample_trilinear3d.vec,
    },
    "nearest": {1: aten.upsample_nearest1d.vec, 2: aten.upsample_nearest2d.vec, 3: aten.upsample_nearest3d.vec},
    "bicubic": {2: aten.upsample_bicubic2d.vec},
    "area": {
        1: aten.adaptive_avg_pool1d.default,
        2: aten.adaptive_avg_pool2d.default,
        3: aten.adaptive_avg_pool3d.default,
    },
}


def resize(mode: str, size: tuple[int, ...], value: Tensor) -> Tensor:
    """A batch of inputs at another spatial size."""
    args = _arguments(mode, size)
    result: Tensor = RESIZE[mode][len(size)](value, *args)
    return result


def _arguments(mode: str, size: tuple[int, ...]) -> tuple[Any, ...]:
    if mode == "area":
        return (list(size),)
    return (list(size), None) if mode == "nearest" else (list(size), False, None)


@dataclass(frozen=True)
class SmallerInputs:
    """The network at another size of its inputs."""

    inputs: Mapping[fx.Node, tuple[int, ...]]  # the spatial size of every input that is resized
    positions: Positions

    @staticmethod
    def of(program: Program, axes: Axes, factor: float) -> SmallerInputs:
        """The network on inputs resized by a factor. Inputs are resized that have numbers in them and a dimension
        behind those of samples and channels."""
        inputs: dict[fx.Node, tuple[int, ...]] = {}
        types: dict[fx.Node, TensorType] = {}
        for node in program.placeholders:
            kind: TensorType = type_of(node)
            if not kind.dtype.is_floating_point or not 3 <= len(kind.shape) <= 5:
                continue
            spatial = kind.shape[2:]
            if not all(size.static for size in spatial):
                raise SchemeError(
                    f"sizes: the input '{node.name}' has the shape ({', '.join(map(str, kind.shape))}), of which only "
                    "the batch may be dynamic here"
                )
            inputs[node] = tuple(max(1, round(size.coefficient * factor)) for size in spatial)
            types[node] = kind.with_shape((*kind.shape[:2], *map(Size, inputs[node])))
        if not inputs:
            raise SchemeError(
                "sizes: no input of this network has positions (samples, channels, then height and width)"
            )
        return SmallerInputs(inputs, positions_at(program, axes, types))


class ResizedClone(Clone):
    """The network on smaller inputs, and at other widths too, while it is appended."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        axes: Axes,
        smaller: SmallerInputs,
        widths: Widths,
        prefix: str,
        private: PrivateTensors,
        mode: str,
    ) -> None:
        super().__init__(builder, program, axes, {**smaller.positions.sizes, **widths}, prefix, private)
        self.positions = smaller.positions
        self.channels = Clone(builder, program, axes, widths, prefix, private)  # reads tensors at the widths
        self.tables = set(tables(program, axes, smaller.positions))
        if mode not in RESIZE or any(len(size) not in RESIZE[mode] for size in smaller.inputs.values()):
            raise SchemeError(f"mode={mode!r} is for images; this network has inputs of another kind")
        self.given = {
            node: self.emit(node, RESIZE[mode][len(size)], (builder.shared[node], *_arguments(mode, size)), "resized")
            for node, size in smaller.inputs.items()
            if tuple(map(Size, size)) != type_of(node).shape[2:]
        }

    def emit(self, like: fx.Node, target: Any, args: tuple[Any, ...], name: str, *, part: bool = False) -> fx.Node:
        meta = meta_of(like, part=part)
        return self.builder.call(target, args, {}, f"{self.prefix}{like.name}_{name}", meta)

    def part(self, source: fx.Node) -> fx.Node:
        """The part of a tensor that a level reads, at the positions of that level."""
        if source not in self.views:
            node = self.channels.part(source)
            if source in self.tables:
                node = interpolated(
                    lambda target, args, name: self.emit(source, target, args, name, part=True),
                    node,
                    self.axes.dims[source],
                    self.axes,
                    self.positions,
                )
            self.views[source] = node
        return self.views[source]

    def own(self, source: fx.Node, own: str) -> fx.Node:
        """A tensor of the level's own has no positions."""
        return self.channels.own(source, own)
