"""Networks of the papers as the compiler makes them, for tests that look at sizes only: no value is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from unittest import mock

import torch
from torch import fx, nn

from anytimeify.analysis.axes import Axes, analyse
from anytimeify.analysis.cost import cost
from anytimeify.capture import capture
from anytimeify.capture.side_by_side import side_by_side
from anytimeify.ir import Captured, Cost, Program, TensorType
from anytimeify.ir.rewritten import Rewritten
from anytimeify.papers import Entry, entries
from anytimeify.papers.recipe import Backbone
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.scheme import Scheme

ENTRIES = {entry.name: entry for entry in entries()}


def blank(make: Callable[[int], Backbone], num_classes: int) -> tuple[nn.Module, ...]:
    """The backbones with zeros instead of weights, which is faster than to draw them."""
    with torch.device("meta"):
        made = make(num_classes)
    backbones = made if isinstance(made, tuple) else (made,)
    for backbone in backbones:
        for tensor in backbone.to_empty(device="cpu").state_dict().values():
            tensor.zero_()
    return backbones


@dataclass(frozen=True)
class Sizes:
    """One or two backbones, captured once, and what schemes make of them."""

    captured: Captured
    axes: Axes

    @staticmethod
    def of(make: Callable[[int], Backbone], shape: tuple[int, ...], num_classes: int) -> Sizes:
        channels, height, width = shape
        # Half the size: the last stage of every network has 4x4 pixels or so.
        x = torch.zeros(2, channels, height // 2, width // 2)
        captured = [capture(backbone, (x,)) for backbone in blank(make, num_classes)]
        whole = replace(captured[0] if len(captured) == 1 else side_by_side(*captured), reinitialised=None)
        return Sizes(whole, analyse(whole.program))

    @staticmethod
    def of_entry(entry: Entry) -> Sizes:
        return Sizes.of(entry.backbone, entry.shape, entry.num_classes)

    def under(self, scheme: Scheme | str) -> Made:
        assert isinstance(scheme, Scheme)
        blank_of = (
            "anytimeify.passes.rewrites.branch.resized",
            lambda values, shape, _: values.new_zeros(()).expand(*shape),
        )
        with mock.patch(*blank_of):
            return Made(scheme.apply(self.captured, self.axes))


@dataclass(frozen=True)
class Made:
    """A network with its branches."""

    rewritten: Rewritten

    @property
    def levels(self) -> range:
        return range(len(self.rewritten.levels))

    @cached_property
    def params(self) -> Counter[str]:
        """Parameters of each level that nothing else reads, by the level's name; those of a backbone as `full`."""
        names = [level.name for level in self.rewritten.levels]
        counts: Counter[str] = Counter()
        for name, tensor in self.rewritten.program.tensors.items():
            if self.rewritten.program.is_parameter(name):
                parts = name.split(".")
                half = f"{parts[0]}/" if parts[0] in ("first", "second") else ""
                counts[names[int(parts[1])] if parts[0] == "anytime" else f"{half}full"] += tensor.numel()
        return counts

    def halvings(self) -> dict[str, int]:
        """How often each level halves the size of its features on the way from the input."""
        graphs = (project(self.rewritten.program, [level]) for level in self.levels)
        return {level.name: count for level, count in zip(self.rewritten.levels, map(_halvings, graphs), strict=True)}

    def widths(self, level: int) -> Mapping[str, int]:
        """Channels behind every convolution and linear layer of a branch that is its own, by the layer's name."""
        prefix = f"anytime.{level}."
        weights = {name: tensor for name, tensor in self.rewritten.program.tensors.items() if tensor.ndim > 1}
        return {
            name.removeprefix(prefix).removesuffix(".weight"): tensor.shape[0]
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }


def _halvings(program: Program) -> int:
    counts: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if _height(node) is not None:
            before = [source for source in node.all_input_nodes if source in counts]
            ways = {counts[source] + (_height(node) == -(-_height(source) // 2)) for source in before} or {0}  # type: ignore[operator]  # sources in `counts` have one
            assert len(ways) == 1, f"{node.name}: ways of different resolution meet"
            counts[node] = ways.pop()
    return max(counts.values())


def _height(node: fx.Node) -> int | None:
    """Of images and feature maps with more than one row."""
    kind = node.meta.get("type")
    if node.op == "get_attr" or not isinstance(kind, TensorType) or len(kind.shape) != 4:
        return None
    height = kind.shape[2].coefficient
    return height if height > 1 else None


@dataclass(frozen=True)
class Nested:
    """A network whose levels are parts of it, at the size of the paper's images: what each level reads and costs."""

    program: Program  # every level alone
    together: Program
    batch: str | None
    levels: range

    @staticmethod
    def of_entry(entry: Entry, scheme: Scheme | None = None) -> Nested:
        (backbone,) = blank(entry.backbone, entry.num_classes)
        captured = capture(backbone, (torch.zeros(2, *entry.shape),))
        chosen = entry.scheme if scheme is None else scheme
        assert isinstance(chosen, Scheme)
        rewritten = chosen.apply(captured, analyse(captured.program))
        keep = [rewritten.position(level) for level in range(len(rewritten.levels))]
        alone, together = (project(rewritten.program, places) for places in (keep, range(len(keep))))
        return Nested(alone, together, captured.batch, range(len(keep)))

    @cached_property
    def costs(self) -> tuple[Cost, ...]:
        return tuple(cost(project(self.program, [level]), self.batch, 2) for level in self.levels)

    @property
    def macs(self) -> tuple[int, ...]:
        return tuple(one.macs for one in self.costs)

    @property
    def params(self) -> tuple[int, ...]:
        return tuple(one.params for one in self.costs)

    @cached_property
    def total(self) -> int:
        """Parameters that any level reads."""
        return cost(self.together, self.batch, 2).params

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        return tuple(str(node.target) for node in self.program.graph.find_nodes(op="get_attr"))

    def read(self, level: int) -> dict[str, int]:
        """Elements of every parameter that a level reads, by the backbone's names."""
        program = fold(project(self.program, [level]))
        return {
            name.removeprefix(f"anytime.{level}."): program.tensors[name].numel()
            for name in (str(node.target) for node in program.graph.find_nodes(op="get_attr"))
            if program.is_parameter(name)
        }
