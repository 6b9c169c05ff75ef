"""Nested channels: several widths of one network inside one set of weights (NestedNet, slimmable networks).

The rewrite, for dense connectivity:

1. the full network stays as it is;
2. for every lower width the graph is cloned, each axis group cut to its share, parameters read through views of the
   full ones; what no narrowed axis reaches (a stem that is pinned) is computed once for all levels;
3. with private norms, a normalisation whose input differs between levels gets parameters and statistics of its own per
   level, which start as the prefix of the full ones; likewise the last layer before the prediction with private heads.

Triangular connectivity is written by `triangular.py`. Refused: a model whose axes are all pinned; widths that leave
every axis group as it is; triangular connectivity where most of the network would be computed for every level.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, NoReturn

from torch import fx, nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, names
from anytimeify.ir.rewritten import Output, Rewritten, numbered
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.importance import CRITERIA, importance
from anytimeify.passes.multiples import measured_multiple
from anytimeify.passes.rewrites.narrow import clone_narrowed
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.reorder import reorder
from anytimeify.passes.rewrites.triangular import triangular
from anytimeify.passes.scheme import Scheme
from anytimeify.rules import Layers, has_kind

__all__ = ["NestedChannels"]


@dataclass(frozen=True)
class NestedChannels(Scheme):
    """Levels are widths: level k is the same architecture with `widths[k]` of the channels.

    Fields
        widths: width multipliers, increasing, the last one 1. Beside depths, in a sequence of schemes, neighbours may
            be equal.
        where: `"all"` axis groups; only `"inner"` ones (bottlenecks, hidden units, heads; the residual stream stays
            full); or patterns such as `("blocks.*.mlp.*",)`: an axis group is narrowed if the layer that makes it
            matches (its name in the report), or if everything that has it does.
        connectivity: `"dense"`: every level is a pass of its own through its share of the weights. `"triangular"`:
            the channels that a level adds read those of lower levels, never the reverse, so that one pass computes all
            levels and a stream computes nothing twice. The full level has fewer weights than the backbone then.
        norms, heads: `"private"`: parameters and statistics of their own per level; `"shared"`: the prefix of the
            full ones. Under triangular connectivity channels have the same values at every level, and norms of them
            are shared whatever this says. With `norms="every"` also norms that read the same values at every level
            are private: under dense connectivity those that no narrowed axis reaches, and what follows is computed once
            per level; under triangular connectivity those that only heads read.
        order: first permutes each axis group by importance, the function staying the same, so that the thin levels
            start from the most important channels: by the l1 norm of the weights (`"l1"`), by what norms scale with
            (`"norm-scale"`), by a first-order estimate of what the loss would lose (`"taylor"`), or by what layers
            read (`"activation"`). The last two look at `transform(..., batches=...)`.
        multiple_of: channel counts are rounded up to multiples of this. `"auto"`: `transform` runs the largest layers
            on the device of the weights and takes the smallest multiple that is as fast as any; the result's scheme
            has the number.

    Raises `SchemeError` for fields out of range and for backbones that have nothing to narrow.
    """

    name: ClassVar[str] = "nested-channels"

    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    where: str | tuple[str, ...] = "all"
    connectivity: Literal["dense", "triangular"] = "dense"
    norms: Literal["private", "shared", "every"] = "private"
    heads: Literal["private", "shared"] = "private"
    order: Literal["index", "l1", "norm-scale", "taylor", "activation"] = "index"
    multiple_of: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        given: Any = self.widths
        widths = given if isinstance(given, tuple | list) else (given,)
        object.__setattr__(self, "widths", tuple(_as_width(width) for width in widths))
        if not widths or list(self.widths) != sorted(self.widths) or self.widths[-1] != 1.0:
            self._refuse_order()
        where: Any = self.where
        if not isinstance(where, str):
            if not isinstance(where, tuple | list) or not all(isinstance(pattern, str) for pattern in where):
                raise SchemeError(f"where={where!r}: expected all, inner, or names of layers such as blocks.*.mlp.*")
            object.__setattr__(self, "where", tuple(where))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {' or '.join(choices)}")
        multiple: Any = self.multiple_of
        if multiple != "auto" and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
            raise SchemeError(f"multiple_of={multiple!r}: expected a whole number, 1 or more, or auto")

    def check_alone(self) -> None:
        if len(set(self.widths)) < len(self.widths):
            self._refuse_order()

    def _refuse_order(self) -> NoReturn:
        raise SchemeError(
            f"widths={_listed(self.widths)}: expected increasing numbers in (0, 1], the last one 1, such as 0.25,0.5,1"
        )

    @property
    def copies(self) -> int:
        return len(self.widths)

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        *lower, widest, full = self.widths
        if self.connectivity == "triangular" or not lower:
            return self, ProgramSize(1, 1)
        # What is private to a level has a size in proportion to its width.
        times = ProgramSize(1 + len(lower), 1 + sum(lower) / widest)
        return replace(self, widths=(widest, full)), times

    @property
    def reads_values(self) -> str:
        if self.order != "index":
            return f"order='{self.order}' sorts channels by what they are"
        return "multiple_of='auto' runs layers on the device of the weights" if self.multiple_of == "auto" else ""

    def measured(self, captured: Captured, axes: Axes) -> tuple[NestedChannels, str]:
        if self.multiple_of != "auto":
            return self, ""
        found = measured_multiple(captured, axes, lambda number: replace(self, multiple_of=number).kept(axes))
        return replace(self, multiple_of=found.number), f"multiple_of=auto took {found.number}: {found.measured}"

    def prepare(self, captured: Captured, axes: Axes) -> Captured:
        if self.order == "index":
            return captured
        scores = importance(self.order, captured, axes, self.where)
        unknown = [group.name for group in axes.chosen(self.where) if group.factor not in scores]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            unsorted = f"order={self.order} says nothing about {', '.join(unknown[:3])}{more}: they stay in their order"
            captured = replace(captured, notes=(*captured.notes, unsorted))
        return reorder(captured, axes, scores)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        if self.connectivity == "triangular" and len(self.widths) > 1:
            return self._triangular(captured, axes)
        program = captured.program
        builder = Builder.copying(program)
        outputs: dict[Output, fx.Node] = {}
        heads = self.private_heads(program)
        also = self._always_private(program)
        for level, widths in enumerate(self.kept(axes)[:-1]):
            private = PrivateTensors(program, builder, level, heads, norms=self.norms != "shared")
            env = clone_narrowed(
                builder, program, axes, widths, prefix=names.level_prefix(level), private=private, also=also
            )
            outputs[Output("level", level)] = env[program.outputs[0]]
        outputs[Output("level", len(self.widths) - 1)] = builder.shared[program.outputs[0]]
        named = builder.build_named(outputs, program.graph.output_node())
        return Rewritten(*named, numbered("width", self.widths), shared_norms=self.norms == "shared")

    def _triangular(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        heads, norms = self.private_heads(program), self.norms != "shared"

        def private(level: int, builder: Builder) -> PrivateTensors:
            return PrivateTensors(program, builder, level, heads, norms=norms)

        levels = numbered("width", self.widths)
        found = triangular(captured, axes, self.kept(axes), levels, private, self._always_private(program))
        return replace(found, shared_norms=self.norms == "shared")

    @property
    def shares_values(self) -> bool:
        return self.connectivity == "triangular" and len(self.widths) > 1

    @property
    def narrowed(self) -> str | tuple[str, ...]:
        return self.where

    @property
    def rounding(self) -> int:
        """`multiple_of`, once it is measured."""
        if self.multiple_of == "auto":
            raise SchemeError("multiple_of='auto' is measured first, by transform() or scheme.measured(captured, axes)")
        return self.multiple_of

    def kept(self, axes: Axes) -> list[Widths]:
        """How much of every narrowed axis each level keeps. Refuses two widths that keep the same."""
        kept = [axes.widths(width, multiple_of=self.rounding, where=self.where) for width in self.widths]
        for (width, other), (few, many) in zip(pairwise(self.widths), pairwise(kept), strict=True):
            if width != other and few == many:
                self._refuse_equal(*((other, width) if many else (width, other)), axes)
        return kept

    def _always_private(self, program: Program) -> set[fx.Node]:
        """What every level computes for itself, even where it reads what the others read: norms, and what is computed
        of the tensors of private heads."""
        norms = {node for node in program.graph.nodes if self.norms == "every" and has_kind(node, "norm")}
        return norms | {node for node in self.private_heads(program) if node.op == "call_function"}

    def private_heads(self, program: Program) -> Set[fx.Node]:
        """The tensors of the last layers, and what is computed of them alone, of which every level has its own."""
        return Layers(program).head_operands if self.heads == "private" else set()

    def _refuse_equal(self, width: float, other: float, axes: Axes) -> None:
        units = max(group.size // group.quantum for group in axes.chosen(self.where))
        raise SchemeError(
            f"widths={_listed(self.widths)}: width {width:g} keeps as many channels as {other:g} everywhere "
            f"(multiple_of={self.multiple_of}, the largest axis group has {units} units); leave one of them out"
        )

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.joint import JointLoss

        return JointLoss()


_CHOICES = {
    "connectivity": ("dense", "triangular"),
    "norms": ("private", "shared", "every"),
    "heads": ("private", "shared"),
    "order": ("index", *CRITERIA),
}


def _as_width(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise SchemeError(f"widths: {value!r} is not a number in (0, 1]")
    return float(value)


def _listed(widths: Any) -> str:
    return ",".join(f"{width:g}" if isinstance(width, int | float) else str(width) for width in widths)
