"""The residual units of a network: parts that add to a stream, and may read other tensors beside it.

    x -> norm -> attention(., mask) -> + x      one unit, from x to the sum
    x -> conv -> norm -> + x -> relu            from x to the activation

A unit lies between two tensors of one type, its start and its end. Nothing inside it is read elsewhere, except in sums
with other streams of the same network (the skip connections of a WaveNet, the forecasts of N-BEATS), which the unit
then adds to as well. Unlike blocks (`anytimeify.analysis.blocks`), units need no cut points: masks, conditioning and
the skip connections of a U-Net may pass them.

Units of one kind have the same layers and the same types. Units that follow each other on one stream, in a sequence
that repeats (attention, feed-forward, attention, feed-forward), make one block a period.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeAlias

from torch import fx

from anytimeify.analysis.blocks import Block, Segment, best_period, data_nodes
from anytimeify.graph.traversal import reachable
from anytimeify.ir import Program, TensorType
from anytimeify.ir.node_meta import type_of
from anytimeify.rules import has_kind, traits

__all__ = ["ResidualUnits", "Run"]

Run: TypeAlias = list[Block]  # blocks of one kind, in graph order

_DEEPEST = 3  # how many units may lie in each other


@dataclass(frozen=True)
class _Unit:
    """A residual unit; the nodes of `beside` add to further streams, each with the tensor that it adds to."""

    start: fx.Node
    end: fx.Node
    nodes: int  # a set of data nodes, as the bits of a number
    key: Any
    beside: tuple[tuple[fx.Node, fx.Node], ...]
    inside: list[_Unit] = field(default_factory=list)


@dataclass(frozen=True)
class ResidualUnits:
    """The residual units of a program. Finding them takes time in the number of sums times that of nodes."""

    program: Program

    def runs(self) -> Iterator[list[Run]]:
        """All blocks, by kind: those of the outermost units first, then those of the units inside them."""
        before: list[_Unit] = []
        for depth in range(_DEEPEST):
            units = self._at(depth)
            if [unit.end for unit in units] != [unit.end for unit in before]:
                yield _by_kind(self._blocks(units))
            before = units

    @cached_property
    def units(self) -> Sequence[_Unit]:
        """All of them, in the order in which they end."""
        found = [unit for node in self._places if traits(node).joins and (unit := self._unit(node)) is not None]
        return self._with_what_follows(found)

    def _at(self, depth: int) -> list[_Unit]:
        """The outermost units, those of `depth` levels replaced by what lies in them; so is one that is alone of its
        kind."""
        units = self._outermost
        for _ in range(depth):
            units = [inner for unit in units for inner in unit.inside or [unit]]
        while True:
            count = Counter(unit.key for unit in units)
            if not any(count[unit.key] == 1 and unit.inside for unit in units):
                return units
            units = [
                inner for unit in units for inner in (unit.inside if count[unit.key] == 1 and unit.inside else [unit])
            ]

    @cached_property
    def _outermost(self) -> list[_Unit]:
        """Every unit among what lies in the smallest that holds it. Units that overlap otherwise are left out."""
        outermost: list[_Unit] = []
        for unit in sorted(self.units, key=lambda one: -one.nodes.bit_count()):
            level, fits = outermost, True
            while fits:
                touching = [other for other in level if other.nodes & unit.nodes]
                fits = len(touching) < 2 and not any(unit.nodes & ~other.nodes for other in touching)
                if not touching or not fits:
                    break
                level = touching[0].inside
            if fits:
                level.append(unit)
        for unit in self.units:
            unit.inside.sort(key=lambda one: self._places[one.end])
        return sorted(outermost, key=lambda one: self._places[one.end])

    # One unit.

    def _unit(self, join: fx.Node) -> _Unit | None:
        """The unit that ends with a sum: from the last tensor of its type that all summands depend on."""
        summands = [source for source in join.all_input_nodes if source in self._places]
        if len(summands) != 2:
            return None
        common = self._with_ancestors(summands[0]) & self._with_ancestors(summands[1])
        starts = (self._nodes[place] for place in _bits_from_last(common))
        start = next((node for node in starts if type_of(node) == type_of(join)), None)
        if start is None or (_subtracts(join) and join.args[0] is not start):
            return None
        return self._between(start, join)

    def _between(self, start: fx.Node, end: fx.Node) -> _Unit | None:
        inside = self._with_ancestors(end) & self._after(start)
        found = self._beside(end, inside)
        if found is None:
            return None
        nodes, beside = found
        if not any(traits(node).macs is not None for node in self._members(nodes)):
            return None
        return _Unit(start, end, nodes, self._key(nodes, end), beside)

    def _beside(self, end: fx.Node, inside: int) -> tuple[int, tuple[tuple[fx.Node, fx.Node], ...]] | None:
        """What else depends on the inside of a unit, if it ends in sums with other streams; None if it does not."""
        beyond = self._with_descendants(end)
        sums: list[tuple[fx.Node, fx.Node]] = []
        waiting = list(self._members(inside & ~self._bit(end)))
        while waiting:
            for user in self._readers(waiting.pop()):
                place = self._bit(user) if user in self._places else 0
                if place & inside:
                    continue
                if not place or place & beyond:
                    return None
                inside |= place
                other = [one for one in user.all_input_nodes if not self._above.get(one, 0) & inside]
                if traits(user).joins and len(other) == 1 and type_of(other[0]) == type_of(user):
                    if other[0] not in self._places or (_subtracts(user) and user.args[0] is not other[0]):
                        return None
                    sums.append((other[0], user))
                else:
                    waiting.append(user)
        return inside, tuple(sums)

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """What reads a node: data, and the output; of sizes, what reads those."""
        return (
            one
            for one in reachable(node.users, lambda one: () if one in self._places else one.users)
            if one in self._places or one.op == "output"
        )

    def _key(self, nodes: int, end: fx.Node) -> Any:
        """Layers with the shapes of their parameters, and the type of the stream."""
        layers = [
            (str(node.target), shapes, str(type_of(node)))
            for node in self._members(nodes)
            if (shapes := self._parameters(node)) or traits(node).macs is not None
        ]
        return tuple(layers), str(type_of(end))

    def _parameters(self, node: fx.Node) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters that a node reads, as they are or computed on."""
        sources = [source for source in node.all_input_nodes if source not in self._places]
        read = reachable(sources, lambda one: one.all_input_nodes, stop=lambda one: one in self._places)
        names = [str(one.target) for one in read if one.op == "get_attr"]
        return tuple(tuple(self.program.tensors[name].shape) for name in names if self.program.is_parameter(name))

    # What follows a sum.

    def _with_what_follows(self, units: Sequence[_Unit]) -> list[_Unit]:
        """Units up to the activations behind their sums; behind those of one kind, norms too if the next begins there
        (post-norm)."""
        kinds: dict[Any, list[_Unit]] = {}
        for unit in units:
            kinds.setdefault(unit.key, []).append(unit)
        starts = {unit.start for unit in units}
        lengths: dict[Any, int] = {}
        for key, alike in kinds.items():
            chains = [list(self._chain(unit.end)) for unit in alike]
            common = [{self._step(node) for node in nodes} for nodes in zip(*chains, strict=False)]
            same = len(list(takewhile(lambda steps: len(steps) == 1, common)))
            while same and has_kind(chains[0][same - 1], "norm") and all(c[same - 1] not in starts for c in chains):
                same -= 1
            lengths[key] = same
        return [self._longer(unit, lengths[unit.key]) for unit in units]

    def _chain(self, node: fx.Node) -> Iterator[fx.Node]:
        """The activations and norms that alone read what is before them."""
        while len(node.users) == 1:
            (user,) = node.users
            sources = [source for source in user.all_input_nodes if source in self._places]
            if user not in self._places or sources != [node] or type_of(user) != type_of(node):
                return
            if not has_kind(user, "norm") and (not has_kind(user, "pointwise") or self._parameters(user)):
                return
            yield user
            node = user

    def _step(self, node: fx.Node) -> tuple[Any, ...]:
        return str(node.target), self._parameters(node)

    def _longer(self, unit: _Unit, length: int) -> _Unit:
        chain = list(self._chain(unit.end))[:length]
        if not chain:
            return unit
        return replace(unit, end=chain[-1], nodes=unit.nodes | sum(map(self._bit, chain)))

    # Blocks.

    def _blocks(self, units: Sequence[_Unit]) -> Iterator[Block]:
        """One unit or one period of units each."""
        kinds: dict[Any, int] = {}
        for stream in _streams(units):
            keys, start = [unit.key for unit in stream], 0
            while start < len(stream):
                period, count = best_period(keys, start)
                for repeat in range(count):
                    members = stream[start + repeat * period : start + (repeat + 1) * period]
                    kind = kinds.setdefault(tuple(unit.key for unit in members), len(kinds))
                    segments = tuple(Segment(u.start, u.end, tuple(self._members(u.nodes))) for u in members)
                    yield Block(segments, kind, tuple(pair for unit in members for pair in unit.beside))
                start += period * count

    # Sets of data nodes.

    @cached_property
    def _nodes(self) -> Sequence[fx.Node]:
        return [node for node in data_nodes(self.program) if isinstance(type_of(node), TensorType | tuple)]

    @cached_property
    def _places(self) -> Mapping[fx.Node, int]:
        return {node: place for place, node in enumerate(self._nodes)}

    @cached_property
    def _above(self) -> Mapping[fx.Node, int]:
        found: dict[fx.Node, int] = {}
        for node in self._nodes:
            found[node] = self._bit(node)
            for source in node.all_input_nodes:
                found[node] |= found.get(source, 0)
        return found

    @cached_property
    def _below(self) -> Mapping[fx.Node, int]:
        found: dict[fx.Node, int] = {}
        for node in reversed(self._nodes):
            found[node] = self._bit(node)
            for user in node.users:
                found[node] |= found.get(user, 0)
        return found

    def _bit(self, node: fx.Node) -> int:
        return 1 << self._places[node] if node in self._places else 0

    def _with_ancestors(self, node: fx.Node) -> int:
        return self._above[node]

    def _with_descendants(self, node: fx.Node) -> int:
        return self._below[node]

    def _after(self, node: fx.Node) -> int:
        return self._below[node] & ~self._bit(node)

    def _members(self, nodes: int) -> Iterator[fx.Node]:
        return (self._nodes[place] for place in reversed(list(_bits_from_last(nodes))))


def _subtracts(node: fx.Node) -> bool:
    return "sub" in str(node.target)


def _bits_from_last(bits: int) -> Iterator[int]:
    while bits:
        place = bits.bit_length() - 1
        yield place
        bits ^= 1 << place


def _streams(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Units that begin where others end follow those."""
    ending: dict[fx.Node, list[_Unit]] = {}
    streams: list[list[_Unit]] = []
    for unit in units:
        stream = ending.pop(unit.start, None)
        if stream is None:
            streams.append(stream := [])
        stream.append(unit)
        ending[unit.end] = stream
    return streams


def _by_kind(blocks: Iterator[Block]) -> list[Run]:
    runs: dict[int, Run] = {}
    for block in blocks:
        runs.setdefault(block.kind, []).append(block)
    return list(runs.values())
