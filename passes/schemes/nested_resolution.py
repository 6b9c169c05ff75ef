"""Nested resolution: lower levels look at a smaller copy of the input, through the same weights.

    level of 0.5:   x [n, 3, 224, 224] -> resize [n, 3, 112, 112] -> the backbone -> [n, classes]

The rewrite:

1. the full network stays as it is;
2. for every lower level the inputs are resized and the network is copied after them; it reads the same parameters, and
   arguments that are sizes follow;
3. tensors with an element for every position (position embeddings) are interpolated;
4. with private norms, every level has parameters and statistics of its own, which start as the full ones.

Refused: inputs without positions, networks with weights for every position (a classifier that reads a flattened map),
indices and masks that are made for one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Size, TensorType, meta_of, names
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.rewritten import Output, Rewritten, numbered
from anytimeify.passes.rewrites.input_sizes import Positions, positions_at
from anytimeify.passes.rewrites.interpolate import interpolated, tables
from anytimeify.passes.rewrites.narrow import Clone
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.taxonomy import coarse_heads
from anytimeify.passes.scheme import Scheme
from anytimeify.passes.schemes.nested_channels import PrivateTensors

__all__ = ["NestedResolution", "Resized"]

aten = torch.ops.aten
_RESIZE: dict[str, dict[int, Any]] = {  # by the number of spatial dimensions
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


@dataclass(frozen=True)
class NestedResolution(Scheme):
    """Levels are input sizes: level k is the backbone on its input resized by `sizes[k]`.

    Fields
        sizes: factors of height and width (of length, of depth), increasing, the last one 1. Beside widths, in a
            sequence of schemes, neighbours may be equal.
        norms: `"private"`: norms have parameters and statistics of their own per level; `"shared"`: those of the full
            network.
        mode: how the input is resized: `"bilinear"` (linear in one dimension, trilinear in three), `"bicubic"`,
            `"nearest"` or `"area"`, as in `torch.nn.functional.interpolate`.

    Raises `SchemeError` for fields out of range and for backbones that take inputs of one size only.
    """

    name: ClassVar[str] = "nested-resolution"

    sizes: tuple[float, ...] = (0.5, 0.75, 1.0)
    norms: Literal["private", "shared"] = "private"
    mode: Literal["bilinear", "bicubic", "nearest", "area"] = "bilinear"

    def __post_init__(self) -> None:
        given: Any = self.sizes
        sizes = tuple(given) if isinstance(given, tuple | list) else (given,)
        numbers = all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s <= 1 for s in sizes)
        if not sizes or not numbers or list(sizes) != sorted(sizes) or sizes[-1] != 1:
            raise _wrong_order(sizes)
        object.__setattr__(self, "sizes", tuple(float(size) for size in sizes))
        for field, choices in (("norms", ("private", "shared")), ("mode", tuple(_RESIZE))):
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {' or '.join(choices)}")

    def check_alone(self) -> None:
        if len(set(self.sizes)) < len(self.sizes):
            raise _wrong_order(self.sizes)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        outputs: dict[Output, fx.Node] = {}
        for level, smaller in enumerate(self.levels(captured, axes)[:-1]):
            own = PrivateTensors(program, builder, level, coarse_heads(program), norms=self.norms == "private")
            env = Resized(builder, program, axes, smaller, {}, names.level_prefix(level), own, self.mode).run()
            outputs[Output("level", level)] = env[program.outputs[0]]
        outputs[Output("level", len(self.sizes) - 1)] = builder.shared[program.outputs[0]]
        named = builder.build_named(outputs, program.graph.output_node())
        shared = self.norms == "shared"
        notes = self.notes(captured, axes)
        return Rewritten(*named, numbered("size", self.sizes), shared_norms=shared, notes=notes)

    def notes(self, captured: Captured, axes: Axes) -> tuple[str, ...]:
        """In words, what is interpolated."""
        found = dict.fromkeys(
            str(table.target)
            for smaller in self.levels(captured, axes)
            for table in tables(captured.program, axes, smaller.positions)
        )
        if not found:
            return ()
        return (f"read at interpolated positions by levels of smaller inputs: {', '.join(found)}",)

    def levels(self, captured: Captured, axes: Axes) -> list[Smaller]:
        """The input sizes of every level. Refuses neighbours that round to the same."""
        found = [Smaller.of(captured.program, axes, size) for size in self.sizes]
        for (size, other), (few, many) in zip(pairwise(self.sizes), pairwise(found), strict=True):
            if size != other and few.inputs == many.inputs:
                raise SchemeError(f"sizes: {size:g} and {other:g} give inputs of the same size; leave one of them out")
        return found

    def on_other_inputs(self, captured: Captured, axes: Axes) -> Iterator[tuple[str, Program, tuple[Tensor, ...]]]:
        rewritten = self.apply(captured, axes)
        for level, smaller in enumerate(self.levels(captured, axes)[:-1]):
            if tables(captured.program, axes, smaller.positions):
                continue  # the backbone may read them at other positions in a way of its own
            inputs = tuple(
                _resize(self.mode, smaller.inputs[node], value) if node in smaller.inputs else value
                for node, value in zip(captured.program.placeholders, captured.example_inputs, strict=True)
            )
            name = rewritten.levels[level].name
            yield name, project(rewritten.program, [rewritten.position(level)]), inputs

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.joint import JointLoss

        return JointLoss()


def _wrong_order(sizes: Any) -> SchemeError:
    shown = ",".join(f"{size:g}" if isinstance(size, int | float) else str(size) for size in sizes)
    return SchemeError(f"sizes={shown}: expected increasing numbers in (0, 1], the last one 1, such as 0.5,0.75,1")


def _resize(mode: str, size: tuple[int, ...], value: Tensor) -> Tensor:
    args = _arguments(mode, size)
    result: Tensor = _RESIZE[mode][len(size)](value, *args)
    return result


def _arguments(mode: str, size: tuple[int, ...]) -> tuple[Any, ...]:
    if mode == "area":
        return (list(size),)
    return (list(size), None) if mode == "nearest" else (list(size), False, None)


@dataclass(frozen=True)
class Smaller:
    """The network at another size of its inputs."""

    inputs: Mapping[fx.Node, tuple[int, ...]]  # the spatial size of every input that is resized
    positions: Positions

    @staticmethod
    def of(program: Program, axes: Axes, factor: float) -> Smaller:
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
        return Smaller(inputs, positions_at(program, axes, types))


class Resized(Clone):
    """The network on smaller inputs, and at other widths too, while it is appended."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        axes: Axes,
        smaller: Smaller,
        widths: Widths,
        prefix: str,
        private: PrivateTensors,
        mode: str,
    ) -> None:
        super().__init__(builder, program, axes, {**smaller.positions.sizes, **widths}, prefix, private)
        self.positions = smaller.positions
        self.channels = Clone(builder, program, axes, widths, prefix, private)  # reads tensors at the widths
        self.tables = set(tables(program, axes, smaller.positions))
        if mode not in _RESIZE or any(len(size) not in _RESIZE[mode] for size in smaller.inputs.values()):
            raise SchemeError(f"mode={mode!r} is for images; this network has inputs of another kind")
        self.given = {
            node: self.emit(node, _RESIZE[mode][len(size)], (builder.shared[node], *_arguments(mode, size)), "resized")
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
