"""Parameters and statistics that a level has for itself, in place of those of the full network."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from torch import fx

from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, names
from anytimeify.passes.rewrites.parameter_state import is_state_of_parameters
from anytimeify.rules import has_kind

__all__ = ["PrivateTensors"]


@dataclass(frozen=True)
class PrivateTensors:
    """Which tensors a level has for itself: those of its norms and `heads`, unless something else reads them too (a
    tied weight, a norm whose other call no narrowed axis reaches), and the state of spectral norms."""

    program: Program
    builder: Builder
    level: int
    heads: Set[fx.Node]
    norms: bool

    def __call__(self, user: fx.Node, source: fx.Node, reached: Set[fx.Node]) -> str | None:
        name = str(source.target)
        if source in self.heads:
            tensor = self.program.tensors[name]
            tied = sum(other is tensor for other in self.program.tensors.values()) > 1
            return None if tied or name in self.program.transient else names.of_level(self.level, name)
        if self.norms and all(has_kind(other, "norm") and other in reached for other in source.users):
            self._count_batches(name)
            return names.of_level(self.level, name)
        return names.of_level(self.level, name) if is_state_of_parameters(source, reached) else None

    def _count_batches(self, name: str) -> None:
        """A private batch norm counts its own batches."""
        counter = names.counter(name)
        if names.is_mean(name) and counter in self.program.tensors:
            self.builder.tensors.setdefault(names.of_level(self.level, counter), self.program.tensors[counter].clone())
