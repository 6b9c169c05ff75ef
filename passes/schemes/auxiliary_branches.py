"""Auxiliary branches: exits that fork off a backbone and are made of its own blocks (DHM, Li and Chen 2020; DKS).

The rewrite:

1. the backbone stays as it is, and its own output is the last level;
2. after each fork the rest of the network is copied with parameters of its own, with fewer repeats of its blocks and
   at other widths (`branch`), or a classifier reads pooled features (`pooled_head`);
3. branches that are chosen automatically fork where the parts between forks cost about the same, after stages if there
   are enough, and are as large as the order of costs allows: same blocks, same resolutions, fewer repeats, and only if
   that is not enough half the width or a pooled head;
4. if there are not as many of those, they fork wherever few tensors pass, skip connections among them (`forks`), and
   leave out residual units; else pooled heads of the prediction's shape read one tensor each (`shaped_head`), which the
   report says.

A branch that costs more than the backbone is trained only. Refused: forks by name that data flows around, backbones
that are too small for exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.cost import cost, sizes
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured
from anytimeify.ir.rewritten import LevelData, Output, Rewritten
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.rewrites.exits import as_branches, place_exits
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.scheme import Scheme

__all__ = ["AuxiliaryBranches"]


@dataclass(frozen=True)
class AuxiliaryBranches(Scheme):
    """Levels are the exits in the order of their forks; the last one is the backbone.

    Fields
        branches: how many to place automatically, or each as a `Branch`.
        sampling: which mimicking terms of the loss are active: `"all"`; `"bernoulli"`: those between branches that are
            drawn with `probability`, `per` epoch or step; `"terms"`: at every step some terms drawn at random are left
            out, as in the authors' code (`HierarchicalMimicking`).
        probability: of a branch to be active, for `"bernoulli"`.
        per: how often branches are drawn, `"epoch"` (`net.loss.resample()`) or `"step"`.
        heads: of automatic branches: `"branch"` or `"pool"`, as in `Branch`.

    Raises `SchemeError` for fields out of range, and for branches that the backbone cannot have.
    """

    name: ClassVar[str] = "auxiliary-branches"
    nested: ClassVar[bool] = False  # an early branch may be the larger one

    branches: int | tuple[Branch, ...] = 2
    sampling: Literal["all", "bernoulli", "terms"] = "all"
    probability: float = 0.5
    per: Literal["epoch", "step"] = "epoch"
    heads: Literal["branch", "pool"] = "branch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", as_branches(self.branches))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {', '.join(choices)}")
        probability: Any = self.probability
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 < probability <= 1:
            raise SchemeError(f"probability={probability!r}: expected a number in (0, 1]")

    @property
    def copies(self) -> int:
        return 1 + (self.branches if isinstance(self.branches, int) else len(self.branches))

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        return self, ProgramSize(1, 1)

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        builder = Builder.copying(captured.program)
        exits = place_exits(captured, axes, self.branches, self.heads)
        drawn = [exit.drawn(captured.reinitialised) for exit in exits]
        outputs = {
            Output("level", level): exit(builder, level, values)
            for level, (exit, values) in enumerate(zip(exits, drawn, strict=True))
        }
        outputs[Output("level", len(exits))] = builder.shared[captured.program.outputs[0]]
        program, names = builder.build_named(outputs, captured.program.graph.output_node())
        macs = [cost(project(program, [k]), captured.batch, *sizes(captured)).macs for k in range(len(outputs))]
        exit_names = _numbered([exit.name for exit in exits])
        return Rewritten(
            program,
            names,
            (
                *(LevelData(name, training_only=one > macs[-1]) for name, one in zip(exit_names, macs, strict=False)),
                LevelData("full", backbone=0),
            ),
            resumable=True,
            notes=tuple(builder.notes),
        )

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.hierarchical_mimicking import HierarchicalMimicking

        return HierarchicalMimicking(sampling=self.sampling, probability=self.probability, per=self.per)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which each is there once: the second branch at a fork says so."""
    seen = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, seen, strict=True)]


_CHOICES = {
    "sampling": ("all", "bernoulli", "terms"),
    "per": ("epoch", "step"),
    "heads": ("branch", "pool"),
}
