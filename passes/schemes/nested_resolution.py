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

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, names
from anytimeify.ir.rewritten import Output, Rewritten, numbered
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.rewrites.interpolate import tables
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.resized_inputs import RESIZE, ResizedClone, SmallerInputs, resize
from anytimeify.passes.rewrites.taxonomy import coarse_heads
from anytimeify.passes.scheme import Scheme

__all__ = ["NestedResolution"]


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
        for field, choices in (("norms", ("private", "shared")), ("mode", tuple(RESIZE))):
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {' or '.join(choices)}")

    def check_alone(self) -> None:
        if len(set(self.sizes)) < len(self.sizes):
            raise _wrong_order(self.sizes)

    @property
    def copies(self) -> int:
        return len(self.sizes)

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        return self, ProgramSize(1, 1)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        builder = Builder.copying(program)
        outputs: dict[Output, fx.Node] = {}
        for level, smaller in enumerate(self.levels(captured, axes)[:-1]):
            own = PrivateTensors(program, builder, level, coarse_heads(program), norms=self.norms == "private")
            env = ResizedClone(builder, program, axes, smaller, {}, names.level_prefix(level), own, self.mode).run()
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

    def levels(self, captured: Captured, axes: Axes) -> list[SmallerInputs]:
        """The input sizes of every level. Refuses neighbours that round to the same."""
        found = [SmallerInputs.of(captured.program, axes, size) for size in self.sizes]
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
                resize(self.mode, smaller.inputs[node], value) if node in smaller.inputs else value
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
