"""What an anytime model is, as it can be read."""

from __future__ import annotations

from torch import Tensor, fx

from anytimeify.analysis.axes import Axes
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.ir import Captured, Level, Results
from anytimeify.ir.rewritten import Rewritten
from anytimeify.operators.modules import Watched
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme
from anytimeify.runtime.compiled import Compiled, tensors_of
from anytimeify.runtime.definition import Definition
from anytimeify.taxonomy import Taxonomy

__all__ = ["Described"]


class Described(Watched):
    """A module that tells what it was compiled from, and the levels that came out."""

    _compiled: Compiled

    @property
    def _definition(self) -> Definition:
        return self._compiled.definition

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers as they are now, by name, those of the loss left out; tied ones under each name."""
        return tensors_of(self, self._compiled.renamed)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The networks inside, cheapest first, with what each of them costs for one sample."""
        return self._compiled.levels

    @property
    def resumable(self) -> bool:
        """Whether `stream` computes at each step only what earlier steps did not."""
        return self._definition.rewritten.resumable

    @property
    def scheme(self) -> Scheme:
        return self._definition.scheme

    @property
    def axes(self) -> Axes:
        return self._definition.axes

    @property
    def full(self) -> int:
        """The position of the level that equals the backbone."""
        return max(self.backbones)

    @property
    def exact(self) -> bool:
        """Whether the full level equals the backbone as long as nothing is trained."""
        return self._definition.rewritten.exact

    @property
    def backbones(self) -> tuple[int, ...]:
        """The positions of the levels that equal the backbones: one, or one for each of two."""
        return self._definition.rewritten.backbones

    @property
    def taxonomy(self) -> Taxonomy | None:
        """The classes of every granularity, where predictions are of several."""
        return self._definition.options.taxonomy

    @property
    def consensus(self) -> Consensus | None:
        """How the last level combines the others, where it does."""
        return self._definition.options.consensus

    @property
    def checkpoint(self) -> bool:
        """Whether the levels recompute in the backward pass what the backbone recomputes."""
        return self._definition.options.checkpoint

    @property
    def results(self) -> Results | None:
        """What levels return in both modes, with `output="all"`; None where they return predictions."""
        return self._definition.rewritten.results

    @property
    def granularities(self) -> tuple[tuple[str, ...], ...]:
        """Which granularities every level predicts, finest first; empty without a taxonomy."""
        return self._definition.granularities

    @property
    def served(self) -> tuple[str, ...]:
        """The granularity that every level serves where one prediction is asked for; empty without a taxonomy."""
        return self._definition.served

    @property
    def _backbone(self) -> Captured:
        """The backbone in canonical form, with tensors that hold nothing: sizes and types alone."""
        return self._definition.captured

    @property
    def captured(self) -> Captured:
        """The backbone in canonical form, with the tensors of this model as they are now."""
        return self._definition.captured_with(self.tensors())

    def _recast(self) -> tuple[Captured, Axes]:
        """The backbone and its axes in the precision of its tensors."""
        return self._definition.recast_with(self.captured)

    @property
    def rewritten(self) -> Rewritten:
        """The joint graph in canonical form, with the tensors of this model as they are now."""
        return self._definition.rewritten_with(self.tensors())

    @property
    def call_signature(self) -> CallSignature:
        return self._compiled.call_signature

    @property
    def graphs(self) -> tuple[fx.GraphModule, ...]:
        """The joint graph, then the graph of each level, as they run: as modules, with flat inputs."""
        return self._compiled.graphs
