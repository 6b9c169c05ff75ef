"""What a scheme gives back: one graph, the names of its outputs, and its levels.

Nothing counts positions: an output is added under its name, an `Output`, and looked up by it. The order of the graph's
flat tuple is that in which outputs were added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import fx

from anytimeify.ir import Program, Results, Structure

__all__ = ["LevelData", "Output", "Rewritten", "Role", "numbered"]

Role: TypeAlias = Literal["level", "member", "alone", "step"]
# Where a level is not computed in a form of its own, it is in the next one.
_FORMS: Mapping[Role, tuple[Role, ...]] = {
    "step": ("step", "alone", "level"),
    "alone": ("alone", "level"),
    "level": ("level",),
    "member": ("member",),
}


@dataclass(frozen=True)
class Output:
    """What one output of a rewritten graph is.

    Fields
        role: `"level"`: the prediction of a level where all of them are computed together; `"member"`: one that the
            loss reads besides; `"alone"`: a level at its own cost, where computing it together costs more; `"step"`: a
            level computed from the one before, for a stream, where that is another form again.
        index: of the level or member.
        granularity: which one, of a taxonomy, 0 the finest; None without a taxonomy, and before predictions of several
            granularities are taken apart.
        leaf: which one of all that the backbone returns, as `Captured.results` numbers them; None where that is the
            prediction alone, and before they are taken apart.
    """

    role: Role
    index: int
    granularity: int | None = None
    leaf: int | None = None


@dataclass(frozen=True)
class LevelData:
    """A level as a scheme says it is, before it has a cost.

    Fields
        name: for people; nothing reads a meaning out of it.
        number: what the scheme counts by, one a level: a width, a depth, a density, a number of leaves.
        training_only: whether it costs more than the backbone.
        member: which member the loss takes it for, where members are levels.
        backbone: the backbone that it equals, 0 or, of two side by side, 1; None for other levels.
        served: with a taxonomy, the granularity that it serves where one prediction is asked for.
        consensus: whether it is made of the predictions of the levels before.
    """

    name: str
    number: float | None = None
    training_only: bool = False
    member: int | None = None
    backbone: int | None = None
    served: int | None = None
    consensus: bool = False


def numbered(what: str, numbers: Sequence[float]) -> tuple[LevelData, ...]:
    """Levels of one number each, such as widths, the last one the backbone's."""
    last = len(numbers) - 1
    return tuple(
        LevelData(f"{what} {number:g}", number, backbone=0 if place == last else None)
        for place, number in enumerate(numbers)
    )


@dataclass(frozen=True)
class Rewritten:
    """What a scheme gives back."""

    program: Program
    names: tuple[Output, ...]  # of the program's outputs, in their order
    levels: tuple[LevelData, ...]  # cheapest first
    exact: bool = True  # whether levels equal their backbones; under triangular connectivity they have fewer weights
    resumable: bool = False  # whether a stream of the steps computes at each what earlier ones did not
    shared_norms: bool = False  # whether levels share the statistics of norms that fit one of them only
    results: Results | None = None  # what levels return besides their predictions
    stacked_parameters: frozenset[str] = frozenset()  # tensors that hold those of several members, the backbone's first
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.program.outputs) or len(set(self.names)) != len(self.names):
            raise ValueError(f"{len(self.program.outputs)} outputs are called {', '.join(map(str, self.names))}")

    @property
    def outputs(self) -> Mapping[Output, fx.Node]:
        """The nodes of the program's graph by what they are."""
        return dict(zip(self.names, self.program.outputs, strict=True))

    @property
    def backbones(self) -> tuple[int, ...]:
        """The levels that equal the backbones: one, or one for each of two."""
        found = {level.backbone: index for index, level in enumerate(self.levels) if level.backbone is not None}
        return tuple(found[backbone] for backbone in sorted(found))

    @property
    def members(self) -> tuple[tuple[Role, int], ...]:
        """What each of the members is: an output of its own, or a level."""
        levels = {level.member: index for index, level in enumerate(self.levels) if level.member is not None}
        own = {output.index for output in self.names if output.role == "member"}
        return (
            *(("member", index) for index in sorted(own)),
            *(("level", levels[member]) for member in sorted(levels)),
        )

    @property
    def joint(self) -> tuple[Output, ...]:
        """What a joint evaluation gives: every granularity of the levels, then of the members."""
        return tuple(output for role in ("level", "member") for output in self.names if output.role == role)

    def granularities(self, role: Role, index: int) -> tuple[int, ...]:
        """Those that a level or member has, finest first; none without a taxonomy."""
        own = (one.granularity for one in self.of(role, index))
        return tuple(granularity for granularity in own if granularity is not None)

    def of(self, role: Role, index: int) -> tuple[Output, ...]:
        """A level or member: of a taxonomy every granularity that it has, finest first, or one output without."""
        return tuple(output for output in self.names if (output.role, output.index) == (role, index))

    def form(self, role: Role, level: int, granularity: int | None = None, leaf: int | None = None) -> Output:
        """The name of a level's prediction in a form, or in the next form that it has: of the granularity that it
        serves, or of another that it has; or of a `leaf` of what it returns. Raises `KeyError` for one that it does not
        have."""
        wanted = self.levels[level].served if granularity is None else granularity
        if leaf is None and self.results is not None:
            leaf = self.results.evaluation.prediction
        for found in _FORMS[role]:
            if Output(found, level, wanted, leaf) in self.names:
                return Output(found, level, wanted, leaf)
        raise KeyError(Output(role, level, wanted, leaf))

    def forms(self, role: Role, level: int, structure: Structure) -> tuple[Output, ...]:
        """All that a level returns in one mode, in a form: the outputs of the structure, in their order."""
        return tuple(self.form(role, level, leaf=leaf) for leaf in structure.outputs)

    def position(self, level: int, granularity: int | None = None, *, role: Role = "alone") -> int:
        """Where the prediction of a level is among the program's outputs, by default at its own cost."""
        return self.names.index(self.form(role, level, granularity))

    def positions(self, level: int, granularity: int | None = None) -> tuple[int, ...]:
        """Where all that a level returns in eval mode is among the program's outputs, at its own cost."""
        if self.results is None:
            return (self.position(level, granularity),)
        return tuple(map(self.names.index, self.forms("alone", level, self.results.evaluation)))
