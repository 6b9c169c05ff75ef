"""Where a network can be cut, and what it repeats: cut points, segments, blocks and stages.

A cut point is a tensor through which all data flows from the inputs to the outputs: a dominator of the output in the
graph of activations. Between two neighbouring cut points lies a segment: one operation where the network is a chain,
everything between a fork and the join where it is not. A residual or parallel segment, with the activations and views
after it, makes a block, and so does a layer of a chain with its norm and activation; a sequence of them that repeats
(attention and MLP of a transformer) is one block. Blocks of the same structure have the same `kind`. A stage is a run
of blocks at one resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import networkx as nx
from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.rules import has_kind
from anytimeify.rules.factors import Expr, Factor, Product

__all__ = ["Block", "Blocks", "Segment", "Stage", "best_period", "data_nodes", "find_blocks", "positions"]

_LONGEST_PERIOD = 8  # segments in one repeat: 2 for transformers, 4 with shifted windows


@dataclass(frozen=True)
class Segment:
    """What lies between two neighbouring cut points: after `start` (None: the inputs), up to and with `end`."""

    start: fx.Node | None
    end: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def branching(self) -> bool:
        """Whether data takes more than one way through it."""
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Block:
    """Neighbouring segments; blocks of equal operations, parameter shapes and tensor shapes have the same `kind`. What
    a residual block adds to other streams is `beside` it: each such sum with the tensor that it adds to."""

    segments: tuple[Segment, ...]
    kind: int
    beside: tuple[tuple[fx.Node, fx.Node], ...] = ()

    @property
    def start(self) -> fx.Node | None:
        return self.segments[0].start

    @property
    def end(self) -> fx.Node:
        return self.segments[-1].end

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(node for segment in self.segments for node in segment.nodes)

    @property
    def branching(self) -> bool:
        return any(segment.branching for segment in self.segments)


@dataclass(frozen=True)
class Stage:
    """A run of blocks whose results have `positions` positions (pixels, tokens) a sample; 1 after the last pooling."""

    positions: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Blocks:
    """Cut points in graph order, the segments between them, and both again as stages of blocks."""

    cut_points: tuple[fx.Node, ...]
    segments: tuple[Segment, ...]
    stages: tuple[Stage, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)


def find_blocks(program: Program, axes: Axes) -> Blocks:
    """Cut points, segments, blocks and stages of a canonical program. Time grows linearly with the number of nodes."""
    data = data_nodes(program)
    cuts, owner = _cut_points(program, data)
    segments = _segments(program, data, cuts, owner)
    signature = _Signatures(program, data)
    blocks = _repeats([_Unit(tuple(unit), tuple(map(signature, unit))) for unit in _units(program, segments)])
    return Blocks(tuple(cuts), tuple(segments), tuple(_stages(blocks, axes)))


def data_nodes(program: Program) -> dict[fx.Node, None]:
    """Nodes that carry data from an input to an output. Sizes are no data, nor is what is computed from parameters, nor
    what is filled in the type and shape of something else."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        carries = isinstance(type_of(node), TensorType | tuple) and not has_kind(node, "factory")
        if node.op == "placeholder" or (carries and any(source in reached for source in node.all_input_nodes)):
            reached.add(node)
    needed = ancestors(program.outputs, stop=lambda node: node not in reached)
    return {node: None for node in program.graph.nodes if node in needed}


def _cut_points(program: Program, data: Mapping[fx.Node, None]) -> tuple[list[fx.Node], dict[fx.Node, fx.Node | None]]:
    """The dominators of the outputs, and for every data node the last cut point before it."""
    graph = nx.DiGraph()
    graph.add_nodes_from(["inputs", *data, "outputs"])
    graph.add_edges_from(("inputs", node) for node in data if node.op == "placeholder")
    graph.add_edges_from((source, node) for node in data for source in node.all_input_nodes if source in data)
    graph.add_edges_from((node, "outputs") for node in program.outputs if node in data)
    dominator = nx.immediate_dominators(graph, "inputs")
    cuts: list[fx.Node] = []
    place = dominator.get("outputs", "inputs")
    while place != "inputs":
        if isinstance(type_of(place), TensorType):
            cuts.append(place)
        place = dominator[place]
    cuts.reverse()
    owner: dict[fx.Node, fx.Node | None] = {}
    known = set(cuts)
    for node in data:  # graph order: a dominator comes before what it dominates
        above = dominator[node]
        owner[node] = None if above == "inputs" else above if above in known else owner[above]
    return cuts, owner


def _segments(
    program: Program, data: Mapping[fx.Node, None], cuts: Sequence[fx.Node], owner: Mapping[fx.Node, fx.Node | None]
) -> list[Segment]:
    between: dict[fx.Node | None, list[fx.Node]] = {}
    for node in data:
        between.setdefault(owner[node], []).append(node)
    starts: list[fx.Node | None] = [None, *cuts]
    if len(program.placeholders) == 1 and cuts and cuts[0] is program.placeholders[0]:
        starts.pop(0)  # the one input is a cut point, and nothing lies before it
    return [Segment(start, end, tuple(between[start])) for start, end in pairwise([*starts]) if end is not None]


# Blocks.


def _units(program: Program, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments put together: a branching one and the activations after it, a layer of a chain up to the next."""
    unit: list[Segment] = []
    for segment, following in zip_longest(segments, segments[1:]):
        if unit and _begins(program, segment, following, unit):
            yield unit
            unit = []
        unit.append(segment)
    if unit:
        yield unit


def _begins(program: Program, segment: Segment, following: Segment | None, unit: Sequence[Segment]) -> bool:
    if segment.branching:
        return True
    ranks = _parameter_ranks(program, segment.end)
    if unit[0].branching:
        before, after = segment.start, segment.end
        if ranks or before is None or _elements(before) != _elements(after):
            return True
        # A view leads over to what follows: the next block, or a layer that is no part of this one.
        return type_of(before) != type_of(after) and not (following is not None and following.branching)
    return max(ranks, default=0) > 1 and any(
        max(_parameter_ranks(program, node), default=0) > 1 for before in unit for node in before.nodes
    )


def _elements(node: fx.Node) -> tuple[Any, ...]:
    return type_of(node).size, type_of(node).dtype


def _parameter_ranks(program: Program, node: fx.Node) -> list[int]:
    reads = [source for source in node.all_input_nodes if source.op == "get_attr"]
    return [program.tensors[str(source.target)].ndim for source in reads if program.is_parameter(str(source.target))]


@dataclass(frozen=True)
class _Unit:
    segments: tuple[Segment, ...]
    key: Any


def _repeats(units: Sequence[_Unit]) -> list[Block]:
    """Units as blocks; where a sequence of units repeats, one repeat is one block."""
    kinds: dict[Any, int] = {}
    blocks: list[Block] = []
    start = 0
    while start < len(units):
        period, count = best_period([unit.key for unit in units], start)
        for repeat in range(count):
            members = units[start + repeat * period : start + (repeat + 1) * period]
            kind = kinds.setdefault(tuple(unit.key for unit in members), len(kinds))
            blocks.append(Block(tuple(segment for unit in members for segment in unit.segments), kind))
        start += period * count
    return blocks


def best_period(keys: Sequence[Any], start: int) -> tuple[int, int]:
    """The shortest period that covers most keys from `start` on, and how often it repeats; (1, 1) if nothing does."""
    best = (1, 1)
    for period in range(1, _LONGEST_PERIOD + 1):
        end = start + period
        while end < len(keys) and keys[end] == keys[end - period]:
            end += 1
        count = (end - start) // period
        if count > 1 and count * period > best[0] * best[1]:
            best = (period, count)
    return best


class _Signatures:
    """The structure of a segment as a value: equal for two segments that differ in names and numbers only."""

    def __init__(self, program: Program, data: Mapping[fx.Node, None]) -> None:
        self.program, self.data = program, data
        self.constants: dict[fx.Node, Any] = {}

    def __call__(self, segment: Segment) -> Any:
        places: dict[fx.Node, int] = {} if segment.start is None else {segment.start: -1}
        rows: list[Any] = []
        for node in segment.nodes:
            if node.op == "placeholder":
                row: Any = ("input", str(type_of(node)))
            elif has_kind(node, "dropout", "stochastic depth"):  # their rates differ between repeats of one block
                places[node] = places[bound(node)[next(iter(bound(node)))]]
                continue
            else:
                arguments = tuple((name, self._value(value, places)) for name, value in bound(node).items())
                row = (str(node.target), arguments, str(type_of(node)))
            places[node] = len(rows)
            rows.append(row)
        return tuple(rows)

    def _value(self, value: Any, places: Mapping[fx.Node, int]) -> Any:
        if isinstance(value, fx.Node):
            return places[value] if value in self.data else self._constant(value)
        if isinstance(value, list | tuple):
            return tuple(self._value(item, places) for item in value)
        return str(value)

    def _constant(self, node: fx.Node) -> Any:
        """What is computed from parameters and sizes alone."""
        if node not in self.constants:
            if node.op == "get_attr":
                tensor = self.program.tensors[str(node.target)]
                self.constants[node] = ("tensor", tuple(tensor.shape), str(tensor.dtype))
            elif all(source in self.data for source in node.all_input_nodes):
                self.constants[node] = (str(node.target), str(type_of(node)))
            else:
                inside = tuple(self._constant(source) for source in node.all_input_nodes if source not in self.data)
                self.constants[node] = (str(node.target), inside, str(type_of(node)))
        return self.constants[node]


# Stages.


def _stages(blocks: Sequence[Block], axes: Axes) -> Iterator[Stage]:
    run: list[Block] = []
    before = 0
    for block in blocks:
        here = math.prod(positions(expr) for expr in axes.dims[block.end])
        if run and here != before:
            yield Stage(before, tuple(run))
            run = []
        run.append(block)
        before = here
    if run:
        yield Stage(before, tuple(run))


def positions(expr: Expr) -> int:
    """How many positions a dimension enumerates: 1 for channels, the pixels' part of a flattened dimension."""
    if isinstance(expr, Factor):
        positional = expr.pin is not None and expr.pin.kind in ("position", "input")
        return expr.size.coefficient if positional else 1
    parts = [positions(part) for part in expr.parts]
    if isinstance(expr, Product):
        return math.prod(parts)
    return sum(parts) if any(part > 1 for part in parts) else 1
