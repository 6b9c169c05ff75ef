"""What `transform` adds to any scheme: heads for a taxonomy before and behind it, and a consensus of its levels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from anytimeify.axes import Axes, analyse
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Rewritten
from anytimeify.losses.consensus import ConsensusLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.pass_manager import run_pass
from anytimeify.passes.consensus import Consensus, add_consensus
from anytimeify.passes.granularities import part_heads
from anytimeify.passes.one_writer import one_writer
from anytimeify.passes.taxonomy import add_heads
from anytimeify.rewriter import Scheme
from anytimeify.taxonomy import Taxonomy

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Options of `transform` that go with every scheme."""

    taxonomy: Taxonomy | None = None
    consensus: Consensus | None = None
    checkpoint: bool = False  # whether what the backbone recomputes in the backward pass is recomputed

    def __post_init__(self) -> None:
        if self.taxonomy is not None and not isinstance(self.taxonomy, Taxonomy):
            raise SchemeError(
                f"taxonomy={self.taxonomy!r}: expected a Taxonomy, such as Taxonomy.from_parents([0, 0, 1, 1])"
            )
        if not isinstance(self.checkpoint, bool):
            raise SchemeError(f"checkpoint={self.checkpoint!r}: expected True or False")

    def apply(self, scheme: Scheme, captured: Captured, axes: Axes) -> Rewritten:
        """What the scheme makes of a network, with these options."""
        if self.taxonomy is None:
            rewritten = run_pass(scheme.name, scheme.apply, captured, axes)
        else:
            several = add_heads(captured, axes, self.taxonomy)
            rewritten = run_pass(scheme.name, scheme.apply, several, analyse(several.program))
            rewritten = part_heads(rewritten, self.taxonomy, captured.program)
            rewritten = replace(rewritten, notes=(*several.notes[len(captured.notes) :], *rewritten.notes))
        rewritten = one_writer(rewritten)
        return rewritten if self.consensus is None else add_consensus(rewritten, self.consensus)

    def default_loss(self, scheme: Scheme) -> nn.Module:
        """The scheme's own objective, for every granularity, and that of the consensus."""
        loss = scheme.default_loss()
        if self.taxonomy is not None:
            loss = TaxonomyLoss(loss, self.taxonomy)
        if self.consensus is not None:
            loss = ConsensusLoss(loss, 1.0 if self.consensus.trained else 0.0)
        return loss
