"""Two networks that teach each other, at several depths (DCM, Yao and Sun 2020).

The rewrite:

1. both backbones stand side by side in one graph, over the same inputs;
2. each has auxiliary branches of its own, as `AuxiliaryBranches` makes them; the heads of both are the levels, cheapest
   first, and the members are those of the first network, then those of the second, each cheapest first;
3. the loss pairs every head of one with every head of the other.

Refused: one backbone alone, and different numbers of branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx, nn

from anytimeify.analysis.axes import Axes, analyse
from anytimeify.analysis.cost import cost, sizes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import PAIR, Captured
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.rewritten import LevelData, Output, Rewritten
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.rewrites.exits import Exit, as_branches, place_exits
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.scheme import Scheme

__all__ = ["MutualDistillation"]


@dataclass(frozen=True)
class MutualDistillation(Scheme):
    """Levels are the heads of two networks, `first/...` and `second/...`; `transform((a, b), ...)` takes the pair.

    Fields
        branches: how many to place automatically in each network, or each as a `Branch`, for both networks; a pair of
            tuples of them gives each network its own. 0 is deep mutual learning.
        second: the branches of the second network where they differ.

    Raises `SchemeError` for branches that a backbone cannot have, and where one has more of them than the other.
    """

    name: ClassVar[str] = "mutual-distillation"
    nested: ClassVar[bool] = False
    backbones: ClassVar[int] = 2

    branches: int | tuple[Branch, ...] | tuple[tuple[Branch, ...], tuple[Branch, ...]] = 2
    second: int | tuple[Branch, ...] | None = None

    def __post_init__(self) -> None:
        first: Any = self.branches
        second: Any = self.second
        pair = (
            isinstance(first, tuple | list) and len(first) == 2 and all(isinstance(one, tuple | list) for one in first)
        )
        if pair and second is None:
            first, second = first
        object.__setattr__(self, "branches", _branches(first))
        object.__setattr__(self, "second", None if second is None else _branches(second))
        if _count(self._of(0)) != _count(self._of(1)):
            raise SchemeError(
                f"branches: the first network has {_count(self._of(0))} and the second {_count(self._of(1))}; forks "
                "are matched by their order, so give both as many"
            )

    def _of(self, network: int) -> int | tuple[Branch, ...]:
        one: Any = self.branches if network == 0 or self.second is None else self.second
        return one  # type: ignore[no-any-return]  # a pair was taken apart at the beginning

    @property
    def copies(self) -> int:
        return 1 + _count(self._of(0))

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        return self, ProgramSize(1, 1)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        shapes = [type_of(node).shape[1:] for node in captured.program.outputs]
        if shapes[0] != shapes[1]:
            first, second = (" x ".join(map(str, shape)) or "one" for shape in shapes)
            raise SchemeError(
                f"networks that teach each other predict the same; of a sample the first gives {first} numbers, the "
                f"second {second}"
            )
        heads = [head for network in range(2) for head in self._heads(captured, network)]
        # Levels have their numbers in the names of their tensors, so their order has to be known before they are made.
        order = sorted(range(len(heads)), key=lambda place: heads[place].macs)
        level_of = {place: level for level, place in enumerate(order)}
        builder = Builder.copying(heads[0].half.program)
        builder.add(heads[-1].half.program)
        drawn = [None if head.exit is None else head.exit.drawn(captured.reinitialised) for head in heads]
        made: list[fx.Node] = []
        for place, head in enumerate(heads):
            level = level_of[place]
            own = builder.shared[head.half.program.outputs[0]]
            made.append(own if head.exit is None else head.exit(builder, level, drawn[place]))
        outputs = {Output("level", level): made[place] for level, place in enumerate(order)}
        limits = [head.macs for head in heads if head.exit is None]
        return Rewritten(
            *builder.build_named(outputs, captured.program.graph.output_node()),
            tuple(replace(heads[place].level(limits), member=place) for place in order),
            resumable=True,
            notes=tuple(builder.notes),
        )

    def _heads(self, captured: Captured, network: int) -> list[_Head]:
        """The heads of one network, cheapest first, and its own output last."""
        half = replace(captured, program=project(captured.program, [network], keep_tensors=True), reinitialised=None)
        branches, prefix = self._of(network), PAIR[network]
        exits: list[Exit] = []
        if branches != 0 and branches != ():
            given = branches if isinstance(branches, int) else tuple(_within(one, prefix) for one in branches)
            exits = place_exits(half, analyse(half.program), given, "branch")
        names = [f"{prefix}/{exit.name.replace(f' {prefix}.', ' ')}" for exit in exits]
        heads = [_Head(name, network, half, exit, _macs(half, exit)) for name, exit in zip(names, exits, strict=True)]
        return [*heads, _Head(f"{prefix}/full", network, half, None, _macs(half, None))]

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.cross_layer_mutual import CrossLayerMutual

        return CrossLayerMutual()


@dataclass(frozen=True)
class _Head:
    name: str
    network: int
    half: Captured
    exit: Exit | None
    macs: int

    def level(self, limits: Sequence[int]) -> LevelData:
        """`limits`: what the two networks cost."""
        if self.exit is None:
            return LevelData(self.name, backbone=self.network)
        return LevelData(self.name, training_only=self.macs > limits[self.network])


def _branches(given: Any) -> int | tuple[Branch, ...]:
    if isinstance(given, int) and not isinstance(given, bool) and given == 0:
        return 0
    return () if given == () else as_branches(given)


def _count(branches: int | tuple[Branch, ...]) -> int:
    return branches if isinstance(branches, int) else len(branches)


def _within(branch: Branch, prefix: str) -> Branch:
    """A branch of a network that is one of two."""
    return replace(
        branch,
        at=branch.at if branch.at == "input" else f"{prefix}.{branch.at}",
        repeats={f"{prefix}.{name}": count for name, count in dict(branch.repeats).items()},
        widths={f"{prefix}.{name}": multiple for name, multiple in dict(branch.widths).items()},
    )


def _macs(half: Captured, exit: Exit | None) -> int:
    """The cost of a head with its part of the trunk."""
    program = half.program
    if exit is not None:
        builder = Builder.copying(program)
        program = builder.build([exit(builder, 0, None)], program.graph.output_node())
    return cost(program, half.batch, *sizes(half)).macs
