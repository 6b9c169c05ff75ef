"""The graph of a backbone as blocks, and what is said of every operation in them: widths, pins, forks of levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.blocks import data_nodes, find_blocks
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Captured, Level, TensorType
from anytimeify.ir.node_meta import is_part, origin_of, type_of
from anytimeify.ir.rewritten import Rewritten
from anytimeify.ir.types import type_text
from anytimeify.report.rows import AxisRow, Place, factors_of, macs_shares
from anytimeify.rules.factors import Factor
from anytimeify.rules.op import name_of

__all__ = ["BlockPicture", "OperationRow", "Width", "block_pictures"]

# Nothing narrows these, in any network: they are not worth a mark.
_ALWAYS = ("position", "batch")


@dataclass(frozen=True)
class Width:
    """An axis group that an operation has: its channels, and those kept at each level, where they are known."""

    name: str
    channels: int
    kept: tuple[int | None, ...]


@dataclass(frozen=True)
class OperationRow:
    """One operation. `origin`: module path and source line of the backbone; `share`: its MACs as a part of all;
    `reads`: the operations and inputs whose results it takes."""

    name: str
    operation: str
    module: str
    origin: str
    type: str
    share: float
    reads: tuple[str, ...]
    widths: tuple[Width, ...]
    pins: tuple[Place, ...]


@dataclass(frozen=True)
class BlockPicture:
    """A block between two cut points, `start` and `end`. Blocks of one `kind` have the same structure, `stage` counts
    the resolutions, `positions` are those of its result. `forks`: levels that go their own way from here on."""

    stage: int
    positions: int
    kind: int
    name: str
    start: str
    end: str
    branching: bool
    share: float
    forks: tuple[str, ...]
    operations: tuple[OperationRow, ...]

    @property
    def pins(self) -> tuple[Place, ...]:
        """What is pinned in it, every reason once."""
        found = {(pin.reason, pin.operation): pin for row in self.operations for pin in row.pins}
        return tuple(found.values())

    @property
    def widths(self) -> tuple[Width, ...]:
        """The axis groups of its operations, each once."""
        return tuple({width.name: width for row in self.operations for width in row.widths}.values())


def block_pictures(
    captured: Captured, axes: Axes, rewritten: Rewritten, levels: Sequence[Level], full: int, rows: Sequence[AxisRow]
) -> tuple[BlockPicture, ...]:
    """The blocks of a backbone in order."""
    blocks = find_blocks(captured.program, axes)
    data, shares, forks = data_nodes(captured.program), macs_shares(captured), _forks(rewritten, levels, full)
    by_factor = {group.factor: row for group, row in zip(axes.groups, rows, strict=True)}
    found = []
    for number, stage in enumerate(blocks.stages):
        for block in stage.blocks:
            operations = tuple(
                _operation(node, axes, data, shares, by_factor, captured.batch or "batch") for node in block.nodes
            )
            found.append(
                BlockPicture(
                    stage=number,
                    positions=stage.positions,
                    kind=block.kind,
                    name=_common([row.module for row in operations]) or block.end.name,
                    start=block.start.name if block.start is not None else "the inputs",
                    end=block.end.name,
                    branching=block.branching,
                    share=sum(row.share for row in operations),
                    forks=tuple(name for node in block.nodes for name in forks.get(node.name, ())),
                    operations=operations,
                )
            )
    return tuple(found)


def _operation(
    node: fx.Node,
    axes: Axes,
    data: Mapping[fx.Node, None],
    shares: Mapping[fx.Node, float],
    by_factor: Mapping[Factor, AxisRow],
    batch: str,
) -> OperationRow:
    own = [by_factor[factor] for factor in factors_of(node, axes) if factor in by_factor]
    own.sort(key=lambda row: row.name)
    kind = type_of(node)
    return OperationRow(
        name=node.name,
        operation=name_of(node) if node.op == "call_function" else "input",
        module=origin_of(node).module_path,
        origin=str(origin_of(node)),
        type=type_text(kind).replace(batch, "batch") if isinstance(kind, TensorType) else "several",
        share=shares.get(node, 0.0),
        reads=tuple(source.name for source in node.all_input_nodes if source in data),
        widths=tuple(Width(row.name, row.channels, row.kept) for row in own),
        pins=tuple(_pins(node, own, axes)),
    )


def _pins(node: fx.Node, own: Sequence[AxisRow], axes: Axes) -> Iterator[Place]:
    kinds = {group.name: group.pin.kind for group in axes.groups if group.pin is not None}
    for row in own:
        if row.pin is not None and kinds.get(row.name) not in _ALWAYS:
            yield row.pin
    if node in axes.unknown:
        yield Place("no axis rule for this operation", name_of(node), str(origin_of(node)))


def _forks(rewritten: Rewritten, levels: Sequence[Level], full: int) -> dict[str, list[str]]:
    """Names of levels by the node of the backbone from which they go their own way; none where they share nothing."""

    def output(index: int) -> fx.Node:
        return rewritten.program.outputs[rewritten.position(index)]

    whole = ancestors([output(full)])
    found: dict[str, list[str]] = {}
    for level in levels:
        own = ancestors([output(level.index)], stop=whole.__contains__)
        shared = {source for node in own for source in node.all_input_nodes if source in whole}
        calls = [node for node in shared if node.op == "call_function" and not is_part(node) and not _of_weights(node)]
        for node in calls:
            found.setdefault(node.name, []).append(level.name)
    return found


def _of_weights(node: fx.Node) -> bool:
    """Whether nothing but parameters goes into it."""
    return all(one.op != "placeholder" for one in ancestors([node]))


def _common(paths: Sequence[str]) -> str:
    """The module that holds all of these: `layer1.0` of `layer1.0.conv1` and `layer1.0.bn1`; the first and the last
    where none does."""
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    same = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        same.append(column[0])
    return ".".join(same) or f"{parts[0][0]}…{parts[-1][0]}"
