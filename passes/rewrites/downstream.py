"""The downstream subgraph of a fork: its blocks and axes; which can be left out, and which may have another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any

from torch import fx, nn

from anytimeify.analysis.axes import Axes, AxisGroup, Widths
from anytimeify.analysis.blocks import Block, Blocks, Segment
from anytimeify.analysis.residual_units import ResidualUnits
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Program, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.cuts import Cut
from anytimeify.passes.rewrites.frozen import STATISTICS
from anytimeify.passes.rewrites.replicate import depths
from anytimeify.rules import rule_of
from anytimeify.rules.factors import Factor, flat, leaves, resolve

__all__ = ["Downstream", "has_layer"]


@dataclass(frozen=True)
class Downstream:
    """The downstream subgraph of a fork: its nodes, and the blocks among them."""

    captured: Captured
    axes: Axes
    region: frozenset[fx.Node]
    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]
    units: ResidualUnits  # of the whole network

    @staticmethod
    def of(captured: Captured, axes: Axes, blocks: Blocks, cut: Cut) -> Downstream:
        places = depths(captured.program, [cut])
        region = frozenset(node for node, depth in places.items() if depth and node.op == "call_function")
        return Downstream.within(captured, axes, blocks, region)

    @staticmethod
    def within(
        captured: Captured,
        axes: Axes,
        blocks: Blocks,
        region: frozenset[fx.Node],
        units: ResidualUnits | None = None,
    ) -> Downstream:
        """The calls of a region that nothing outside of it depends on."""
        inside = tuple(block for block in blocks.blocks if region.issuperset(_calls(block)))
        units = ResidualUnits(captured.program) if units is None else units
        return Downstream(captured, axes, region, inside, blocks.segments, units)

    # Blocks.

    def removable(self) -> list[Block]:
        """The blocks that can be left out and of which there are several."""
        kinds = [block.kind for block in self.blocks]
        return [b for b in self.blocks if (b.branching or kinds.count(b.kind) > 1) and self._is_repeat(b)]

    def without(self, repeats: Mapping[str, int]) -> list[Block]:
        """The blocks that are left out so that layers have `repeats` of them; the first ones stay."""
        left_out: list[Block] = []
        asked: list[tuple[list[Block], int]] = []
        for path, count in repeats.items():
            blocks = self._children(path) or [b for b in self.blocks if self._within(b, path) and has_layer(b)]
            if not blocks:
                raise SchemeError(f"repeats: there is no block of '{path}' behind the fork; {self._names_of_blocks()}")
            found = [block for block in blocks if self._is_repeat(block)]
            least = max(1, len(blocks) - len(found))
            if not least <= count <= len(blocks):
                raise SchemeError(
                    f"repeats: '{path}' has {len(blocks)} block{'s' * (len(blocks) > 1)} behind the fork, of which at "
                    f"least {least} ha{'ve' if least > 1 else 's'} to stay; {count} are asked for"
                )
            left_out += found[len(found) - (len(blocks) - count) :]
            asked.append((blocks, count))
        # A block that is left out as a whole and in part would be read from the backbone's own copy of it.
        removed = {node for block in left_out for node in block.nodes}
        counts = [sum(not removed.issuperset(block.nodes) for block in blocks) == count for blocks, count in asked]
        if not all(counts) or any(_overlap(one, other) for one, other in combinations(left_out, 2)):
            raise SchemeError(
                f"repeats: {', '.join(repeats)} name the same blocks and ask for different numbers of them; name each "
                "block once"
            )
        return left_out

    def _children(self, path: str) -> list[Block]:
        """The parts of a layer that end at cut points, as blocks; none where data flows around their ends."""
        segments = [segment for segment in self.segments if self.region.issuperset(_calls(segment))]
        ends: dict[str, int] = {}
        for place, segment in enumerate(segments):
            module = origin_of(segment.end).module_path
            if module.startswith(f"{path}."):
                ends[module.removeprefix(f"{path}.").partition(".")[0]] = place
        first = next((place for place, one in enumerate(segments) if self._begins_in(one, path)), 0)
        if len(ends) < 2 or sorted(ends.values()) != list(ends.values()):
            return []
        starts = [first]
        for start, end in pairwise(ends.values()):  # layers of other paths between two parts belong to neither
            others = [place for place in range(start + 1, end) if self._is_layer_outside(segments[place], path)]
            starts.append(max(others, default=start) + 1)
        return [Block(tuple(segments[start : end + 1]), -1) for start, end in zip(starts, ends.values(), strict=False)]

    def _begins_in(self, segment: Segment, path: str) -> bool:
        return any(origin_of(node).module_path.startswith(f"{path}.") for node in segment.nodes)

    def _is_layer_outside(self, segment: Segment, path: str) -> bool:
        return not self._begins_in(segment, path) and any(True for _ in _paths(self.captured.program, segment))

    def shortened(self, share: float) -> list[Block]:
        """Blocks that are left out so that of every run of equal ones about a share stays, at least one."""
        runs: dict[Any, list[Block]] = {}
        for block in self.removable():
            kind = "dense" if self._added(block) else block.kind  # each dense layer reads more than the one before
            runs.setdefault((kind, self._layer(block)), []).append(block)
        left_out: list[Block] = []
        for run in runs.values():
            alone = not self._follows_other(run[0])
            stay = max(int(alone), round(share * (len(run) + (not alone))) - (not alone))
            left_out += run[stay:]
        return left_out

    def shortenings(self, share: float) -> Iterator[list[Block]]:
        """What may be left out so that about a share of the blocks stays, and at least one of each kind: blocks of the
        same layer between cut points, then residual units from the outermost to the innermost, then any equal
        blocks. There are as many of them whatever the share is."""
        yield self.shortened(share)
        for runs in self._runs:
            yield [block for run in runs for block in run[max(1, round(share * len(run))) :]]

    @cached_property
    def _runs(self) -> list[list[list[Block]]]:
        kinds: dict[int, list[Block]] = {}
        for block in self.removable():
            kinds.setdefault(block.kind, []).append(block)
        ways = [*self.units.runs(), list(kinds.values())]
        return [[[block for block in run if self.region.issuperset(_calls(block))] for run in runs] for runs in ways]

    def _follows_other(self, block: Block) -> bool:
        """Whether a block of the same layer, which cannot be left out, comes before it."""
        layer = self._layer(block)
        removable = set(map(id, self.removable()))
        return any(id(b) not in removable and b.branching and self._layer(b) == layer for b in self.blocks)

    def _layer(self, block: Block) -> str:
        """The path that the layers of a block have in common, without the last part of it."""
        paths = [path.split(".") for path in _paths(self.captured.program, block)]
        if not paths:
            return ""
        common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
        return ".".join(common[:-1])

    def _within(self, block: Block, path: str) -> bool:
        paths = list(_paths(self.captured.program, block))
        return bool(paths) and all(one == path or one.startswith(f"{path}.") for one in paths)

    def _is_repeat(self, block: Block) -> bool:
        if block.start is None:
            return False
        start, end = (type_of(node) for node in _ends(block))
        widths = dict.fromkeys(self._added(block), 0)
        return bool(start == self.axes.shape(self.axes.dims[block.end], end, widths))

    def _added(self, block: Block) -> set[Factor]:
        """The channels that a dense layer adds to what it reads."""
        before, after = (
            {leaf for expr in self.axes.dims[node] for leaf in leaves(resolve(expr))} for node in _ends(block)
        )
        added = after - before
        return added if all(leaf.pin is None for leaf in added) and not before - after else set()

    def _names_of_blocks(self) -> str:
        names = dict.fromkeys(layer for block in self.removable() if (layer := self._layer(block)))
        return f"layers with blocks are {', '.join(list(names)[:6])}" if names else "there are none at all"

    # Widths.

    def widths(
        self, multiples: Mapping[str, float], left_out: Sequence[Block], narrowed: Mapping[Factor, int] | None = None
    ) -> Widths:
        """The size of every factor that differs from the backbone's; `narrowed` are those that are known already."""
        widths: Widths = dict(narrowed or {})
        for block in left_out:
            widths.update(dict.fromkeys(self._added(block), 0))
        if multiples:
            self._multiply(widths, multiples)
        for block in left_out:
            self._check_gap(block, widths)
        return {leaf: size for leaf, size in widths.items() if size != leaf.size.coefficient}

    def _check_gap(self, block: Block, widths: Widths) -> None:
        """What is read around a block that is left out has the type of what the block would have given."""
        before, after = (self.axes.shape(self.axes.dims[node], type_of(node), widths) for node in _ends(block))
        if before != after:
            raise SchemeError(
                f"the block that ends at {block.end.name} cannot be left out at these widths: it reads "
                f"{_shape(before)} and gives {_shape(after)}; give what comes before it the same width"
            )

    def _multiply(self, widths: Widths, multiples: Mapping[str, float]) -> None:
        fixed = self._fixed()
        padded = list(self._padding())
        paddings = {leaf for _, leaf, _ in padded}
        free = [g for g in self.axes.narrowable if g.factor not in fixed and g.factor not in widths]
        used: set[str] = set()
        for group in free:
            path = _longest(group.name.partition("#")[0], multiples)
            if path is not None:
                used.add(path)
                if group.factor not in paddings:
                    widths[group.factor] = _units(group, multiples[path])
        names = {group.factor: group.name.partition("#")[0] for group in free}
        for node, leaf, dim in padded:
            path = _longest(names.get(leaf, ""), multiples)
            if path is not None:
                widths[leaf] = self._padded(node, dim, leaf, multiples[path], path, widths)
        unused = [path for path in multiples if path not in used]
        if unused:
            made = ", ".join(list(dict.fromkeys(g.name.partition("#")[0] for g in free))[:6]) or "none"
            raise SchemeError(
                f"widths: behind the fork no channel axis is made in '{unused[0]}' that could have another size; such "
                f"axes are made by: {made}"
            )

    def _padded(self, node: fx.Node, dim: int, leaf: Factor, multiple: float, path: str, widths: Widths) -> int:
        """The zeros that are missing from the total."""
        expr = self.axes.dims[node][dim]
        total = round(self.axes.size(expr, {}).coefficient * multiple)
        others = self.axes.size(expr, {**widths, leaf: 0}).coefficient
        if total < others:
            raise SchemeError(
                f"widths: '{path}' at {multiple:g} has {total} channels, fewer than the {others} that its shortcut "
                "brings"
            )
        return total - others

    def _padding(self) -> Iterator[tuple[fx.Node, Factor, int]]:
        """Channels of zeros, with the node that adds them and its dimension."""
        for node in self.captured.program.graph.nodes:
            if node not in self.region:
                continue
            pads = self.axes.memo.get(node, {}).get("pads", {})
            for index, parts in pads.items():
                dim = len(self.axes.dims[node]) - 1 - index
                for part in parts:
                    resolved = resolve(part) if part is not None else None
                    if isinstance(resolved, Factor) and resolved.pin is None:
                        yield node, resolved, dim

    def _fixed(self) -> set[Factor]:
        """Factors that the trunk has too, and those of tensors that the branch shares."""
        own = self.own_tensors()
        outside = (
            node
            for node in self.captured.program.graph.nodes
            if node.op != "output" and node not in self.region and not (node.op == "get_attr" and node.target in own)
        )
        return {leaf for node in outside for expr in flat(self.axes.dims[node]) for leaf in leaves(resolve(expr))}

    # Tensors.

    def own_tensors(self) -> set[str]:
        """Names of the parameters and statistics that only the downstream subgraph reads."""
        program = self.captured.program
        shared, own = set(), set()
        for node in program.graph.find_nodes(op="get_attr"):
            tensor = program.tensors[str(node.target)]
            statistics = any(node in (bound(user).get(name) for name in STATISTICS) for user in _calls_of(node))
            replicated = isinstance(tensor, nn.Parameter) or statistics
            if replicated and node.users and self.region.issuperset(node.users):
                own.add(str(node.target))
            else:
                shared.add(id(tensor))
        return {name for name in own if id(program.tensors[name]) not in shared}


# Small questions.


def _shape(kind: TensorType) -> str:
    return f"[{', '.join(map(str, kind.shape))}]"


def _calls(block: Block | Segment) -> Iterator[fx.Node]:
    return (node for node in block.nodes if node.op == "call_function")


def _calls_of(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if user.op == "call_function")


def _ends(block: Block) -> tuple[fx.Node, fx.Node]:
    """What a block reads and gives; only blocks that read one tensor are asked."""
    assert block.start is not None
    return block.start, block.end


def has_layer(block: Block) -> bool:
    """Whether a block multiplies anything."""
    rules = (rule_of(node.target) for node in _calls(block))
    return any(rule is not None and rule.macs is not None for rule in rules)


def _overlap(one: Block, other: Block) -> bool:
    """Whether two blocks have some nodes in common, but not all."""
    return one.nodes != other.nodes and not set(one.nodes).isdisjoint(other.nodes)


def _paths(program: Program, block: Block | Segment) -> Iterator[str]:
    """Where the parameters of a block are."""
    for node in _calls(block):
        for source in node.all_input_nodes:
            if source.op == "get_attr" and program.is_parameter(str(source.target)):
                yield names.layer(str(source.target))


def _longest(name: str, multiples: Mapping[str, float]) -> str | None:
    """The longest of the paths that a name lies in; `""` holds every name."""
    fitting = [path for path in multiples if not path or name == path or name.startswith(f"{path}.")]
    return max(fitting, key=len, default=None)


def _units(group: AxisGroup, multiple: float) -> int:
    return max(1, round(group.size * multiple / group.quantum))
