"""A branch: the downstream subgraph of a fork, copied with fewer repeats of its blocks and at other widths.

    h = block2(block1(stem), w1, w2)        ->      ...
    y = linear(h, head)                             h' = block1(stem, w1')
                                                    y' = linear(h', head')

What is copied:

1. everything after the fork, with its own parameters and running statistics. Where those of the backbone are frozen,
   the copies are frozen too. Constants, and tensors that the trunk reads as well, are shared;
2. repeats: blocks whose result has the type of their input are left out; in dense layers the channels that they would
   have added are missing after them;
3. widths: the axes that a layer makes are multiplied, larger or smaller; axes that the trunk has too keep their size,
   and a zero-padded shortcut is padded by what is missing from the total.

Refused: layers without blocks or axes of that kind, more repeats than there are, repeats that contradict each
other, widths that leave nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Widths
from anytimeify.analysis.blocks import Block
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, names
from anytimeify.ir.node_meta import type_of
from anytimeify.passes.rewrites.downstream import Downstream
from anytimeify.passes.rewrites.frozen import at_size, frozen, is_trained
from anytimeify.passes.rewrites.narrow import clone_region
from anytimeify.passes.rewrites.resized import Spread, resized, spreads
from anytimeify.passes.rewrites.skipped_blocks import SkippedBlocks

__all__ = ["Branch", "grow"]


@dataclass(frozen=True)
class Branch:
    """A branch that forks after a layer.

    Fields
        at: the layer's name; data must not flow around its end, unless a pooled head reads it.
        repeats: how many of the parts of a layer the branch has, such as `{"layer3": 2}`; the last ones that can be
            left out are (one that changes the resolution cannot).
        widths: multiples of the backbone's width, such as `{"layer4": 2.0}`, for the channel axes that are made inside
            a layer; of several names the longest counts.
        head: `"branch"`: the downstream subgraph as said; `"pool"`: no blocks, only a classifier on features that are
            pooled to at most 4x4 positions.
    """

    at: str
    repeats: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    widths: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    head: Literal["branch", "pool"] = "branch"

    def __post_init__(self) -> None:
        if not isinstance(self.at, str):
            raise SchemeError(f"at={self.at!r}: expected the name of a layer")
        object.__setattr__(self, "repeats", _pairs("repeats", self.repeats, _as_count))
        object.__setattr__(self, "widths", _pairs("widths", self.widths, _as_multiple))
        if self.head not in ("branch", "pool"):
            raise SchemeError(f"head={self.head!r}: expected branch or pool")
        if self.head == "pool" and (self.repeats or self.widths):
            raise SchemeError("head='pool' has no blocks: leave repeats and widths out")


def _pairs(field: str, given: Any, read: Callable[[Any], Any]) -> tuple[tuple[str, Any], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        return tuple((_as_name(name), read(value)) for name, value in pairs)
    except (TypeError, ValueError):
        example = "{'layer3': 2}" if field == "repeats" else "{'layer4': 2.0}"
        raise SchemeError(f"{field}={given!r}: expected layers with numbers above zero, such as {example}") from None


def _as_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError
    return name


def _as_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _as_multiple(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError
    return float(value)


def grow(
    builder: Builder,
    downstream: Downstream,
    left_out: Sequence[Block],
    widths: Widths,
    level: int,
    drawn: Mapping[str, Tensor] | None,
) -> fx.Node:
    """Appends a branch, and gives its prediction. Its tensors are called `anytime.<level>.<the backbone's name>`; they
    start as those of `drawn`, or of the backbone without it. What is frozen in the backbone has its values and stays
    frozen, unless it is wider here, or all of the backbone is frozen, so that nothing would train: then it is drawn and
    trained, and the builder notes it."""
    program, axes = downstream.captured.program, downstream.axes
    skipped = SkippedBlocks(left_out)
    own = downstream.own_tensors()
    copies = _Copies(downstream, widths, builder.tensors, drawn)
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name in own and not skipped.removed.issuperset(node.users):
            builder.tensors[names.of_level(level, name)] = copies.of(node)

    def private(user: fx.Node, source: fx.Node, reached: Set[fx.Node]) -> str | None:
        return names.of_level(level, str(source.target)) if source.target in own else None

    prefix = names.level_prefix(level)
    region = downstream.region - skipped.removed
    env = clone_region(builder, program, axes, widths, region, skipped.instead, prefix=prefix, private=private)
    prediction = env[program.outputs[0]]
    read = {str(node.target) for node in ancestors([prediction]) if node.op == "get_attr"}
    for name in own:
        if names.of_level(level, name) in read:
            _count_batches(builder, level, name, program, copies.held)
        else:  # a table that only blocks which are left out would have made something of
            builder.tensors.pop(names.of_level(level, name), None)
    builder.notes += copies.notes(level)
    return prediction


class _Copies:
    """The tensors of one branch."""

    def __init__(
        self,
        downstream: Downstream,
        widths: Widths,
        tensors: Mapping[str, Tensor],
        drawn: Mapping[str, Tensor] | None,
    ) -> None:
        """`tensors`: those of the backbone, among others."""
        self.program, self.axes, self.widths = downstream.captured.program, downstream.axes, widths
        self.tensors = tensors
        self.drawn = drawn if drawn is not None else tensors
        still = frozen(self.program)
        self.everything = bool(still) and not any(map(is_trained, self.program.tensors.values()))
        self.still = frozenset() if self.everything else still
        self.held: set[str] = set()  # frozen ones that have the backbone's values
        self.wider: list[str] = []  # those whose values do not say what those of a wider one are
        self.made: dict[int, Tensor] = {}  # by the backbone's tensor: what is tied stays tied

    def of(self, node: fx.Node) -> Tensor:
        """The branch's own tensor in place of the one that a node reads."""
        tensor = self.tensors[str(node.target)]
        if id(tensor) not in self.made:
            self.made[id(tensor)] = self._copied(node, tensor)
        return self.made[id(tensor)]

    def _copied(self, node: fx.Node, tensor: Tensor) -> Tensor:
        name, dims = str(node.target), self.axes.dims[node]
        shape = [size.coefficient for size in self.axes.shape(dims, type_of(node), self.widths).shape]
        parameter = isinstance(tensor, nn.Parameter)
        if name in self.still:
            kept = at_size(tensor, dims, self.axes, self.widths, shape)
            if kept is not None:
                self.held.add(name)
                return nn.Parameter(kept, requires_grad=False) if parameter else kept
            self.wider.append(name)
        value = self._values(name, tensor, shape)
        trained = value.is_floating_point() or value.is_complex()
        return nn.Parameter(value, trained) if parameter else value

    def _values(self, name: str, tensor: Tensor, shape: list[int]) -> Tensor:
        given = self.drawn.get(name, tensor).detach()
        if given.is_meta and not tensor.is_meta:  # who asks for sizes alone gets no values
            return given.new_empty(shape, dtype=tensor.dtype)
        values = given.to(tensor)
        if shape != list(tensor.shape):
            return resized(values, shape, self.spreads)
        drawn = self.drawn is not self.tensors and name in self.drawn
        return values if drawn else values.clone()

    def notes(self, level: int) -> list[str]:
        """What is trained though the backbone's is not."""
        if self.everything:
            return [f"level {level}: the backbone is frozen as a whole; the branch is trained"]
        why = "frozen in the backbone, but drawn anew and trained here, where they are wider"
        return [f"level {level}: {why}: {_listed(self.wider)}"] if self.wider else []

    @cached_property
    def spreads(self) -> tuple[Spread, ...]:
        """Of the network's weights, as they were drawn."""
        return spreads(self.drawn.get(name, tensor) for name, tensor in self.program.tensors.items())


def _count_batches(builder: Builder, level: int, name: str, program: Program, held: Set[str]) -> None:
    """A batch norm of its own counts its own batches, from the beginning unless its statistics are the backbone's."""
    counter = program.tensors.get(names.counter(name))
    if names.is_mean(name) and counter is not None:
        start = counter.clone() if name in held else torch.zeros_like(counter)
        builder.tensors.setdefault(names.of_level(level, names.counter(name)), start)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
