"""A captured backbone: its program, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from anytimeify.ir.evidence import Evidence
from anytimeify.ir.program import Program
from anytimeify.ir.structures import Results

__all__ = ["PAIR", "Captured", "Reinitialised", "Signature", "batches_in_words"]

Reinitialised: TypeAlias = Callable[[Container[str] | None], Mapping[str, Tensor]]
"""Draws the tensors of these names, or all of them without any; there may be others."""

PAIR = ("first", "second")  # what two networks side by side are called


@dataclass(frozen=True)
class Signature:
    """How the backbone is called and what it returns, as pytrees; `prediction` indexes the flat output."""

    in_spec: Any  # pytree of (args, kwargs); leaves are the program's placeholders or constants
    out_spec: Any  # pytree of the backbone's result
    prediction: int = 0
    constants: tuple[tuple[int, Any], ...] = ()  # flat positions of inputs that are not tensors, with their values
    names: tuple[str, ...] = ()  # of the positional arguments, as the backbone calls them; "" where it does not
    positional: int | None = None  # how many arguments may be given by position, keywords among them; None: all
    trained: int | None = None  # where the prediction is in what train mode returns; None: where eval mode has it


def batches_in_words(sizes: tuple[int, int | None]) -> str:
    """`3 or more`, `1 to 64`, `2`: the smallest and the largest size of a batch, None where there is no largest."""
    least, most = sizes
    if least == most:
        return str(least)
    return f"{least} or more" if most is None else f"{least} to {most}"


@dataclass(frozen=True)
class Captured:
    """A backbone in canonical form, as every scheme receives it."""

    program: Program
    signature: Signature
    example_inputs: tuple[Tensor, ...]  # flat, one per placeholder
    batch: str | None  # the symbol of the dynamic batch; None if the batch is static
    notes: tuple[str, ...] = ()  # what was lost or decided during capture, for the report
    lost: tuple[str, ...] = ()  # the notes among them that say how training differs from the backbone's
    held: frozenset[str] = frozenset()  # paths of the modules that are in eval mode while the backbone trains
    reference: Tensor | None = None  # the backbone's own prediction for the example inputs, in eval mode
    batch_range: tuple[int, int | None] = (1, None)  # the sizes of a dynamic batch that the program is right for
    limit: str | None = None  # the note that says why it takes fewer inputs than the backbone
    whole: tuple[str, ...] = ()  # the notes that say which modules are kept as they are, and why
    # Everything that the backbone returns, in both modes, over the program's outputs; None where the prediction is all.
    results: Results | None = None
    evidence: Evidence | None = field(default=None, repr=False, compare=False)  # what a transform was given to look at
    # The backbone's tensors as its own initialisers draw them; None where its class is not known (a loaded file).
    reinitialised: Reinitialised | None = field(default=None, repr=False, compare=False)

    @property
    def batches(self) -> str:
        """The sizes of a dynamic batch, in words."""
        return batches_in_words(self.batch_range)

    def losing(self, *lost: str) -> Captured:
        """The same, with more that training loses."""
        return replace(self, notes=(*self.notes, *lost), lost=(*self.lost, *lost))

    def keeping(self, *whole: str) -> Captured:
        """The same, with the modules that are kept as they are."""
        return replace(self, notes=(*self.notes, *whole), whole=(*self.whole, *whole))

    def limited_to(self, limit: str) -> Captured:
        """The same, with the reason why it takes fewer inputs than the backbone does."""
        return replace(self, notes=(*self.notes, f"takes only {limit}"), limit=limit)
