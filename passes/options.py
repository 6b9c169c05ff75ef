"""What `transform` adds to any scheme: heads for a taxonomy before and after it, and a consensus of its levels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from anytimeify.analysis.axes import Axes, analyse
from anytimeify.contract.pass_manager import run_pass
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.ir.rewritten import Rewritten
from anytimeify.losses.consensus import ConsensusLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.passes.rewrites.consensus import Consensus, add_consensus
from anytimeify.passes.rewrites.granularities import part_heads
from anytimeify.passes.rewrites.one_writer import one_writer
from anytimeify.passes.rewrites.parameter_state import settle
from anytimeify.passes.rewrites.results import pack, unpack
from anytimeify.passes.rewrites.taxonomy import add_heads
from anytimeify.passes.scheme import Scheme
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
        given = self.before(captured, axes)
        return self.after(run_pass(scheme.name, scheme.apply, *given), captured, given[0], scheme)

    def before(self, captured: Captured, axes: Axes) -> tuple[Captured, Axes]:
        """What the scheme is given of a network: with a taxonomy, one that has a head for every granularity; of several
        results, one that has them in one tensor."""
        if captured.results is not None:
            self._check_results()
            packed = pack(captured, captured.results)
            return packed, analyse(packed.program, returned={node.name for node in captured.program.outputs})
        if self.taxonomy is None:
            return captured, axes
        several = add_heads(captured, axes, self.taxonomy)
        return several, analyse(several.program)

    def _check_results(self) -> None:
        """`SchemeError` for a taxonomy: coarser classes have no place in the backbone's structure."""
        if self.taxonomy is not None:
            raise SchemeError(
                "with a taxonomy a level may predict coarser classes than the backbone, for which there is no place in "
                "the structure that the backbone returns (output='all', or a backbone that returns different things in "
                "train mode and eval mode): leave one of them out, or say with output=... which of the results is the "
                "prediction"
            )

    def after(self, rewritten: Rewritten, captured: Captured, given: Captured, scheme: Scheme) -> Rewritten:
        """What is made of a scheme's result; `given` is what the scheme was given of the network."""
        if captured.results is not None:
            rewritten = unpack(rewritten, captured, captured.results, scheme.name)
        if self.taxonomy is not None:
            rewritten = part_heads(rewritten, self.taxonomy, captured.program)
            rewritten = replace(rewritten, notes=(*given.notes[len(captured.notes) :], *rewritten.notes))
        rewritten = one_writer(settle(rewritten))
        return rewritten if self.consensus is None else add_consensus(rewritten, self.consensus)

    def default_loss(self, scheme: Scheme) -> nn.Module:
        """The scheme's own objective, for every granularity, and that of the consensus."""
        loss = scheme.default_loss()
        if self.taxonomy is not None:
            loss = TaxonomyLoss(loss, self.taxonomy)
        if self.consensus is not None:
            loss = ConsensusLoss(loss, 1.0 if self.consensus.trained else 0.0)
        return loss
