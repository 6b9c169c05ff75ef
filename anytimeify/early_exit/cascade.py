"""What a chain of stages is, without the graphs themselves: names, types and costs of what goes through it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from anytimeify.ir import Level, Signature, Size, TensorType

__all__ = ["Chain", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One graph of a chain, from the values called `reads` to those called `gives`; the last is the prediction.

    `macs` are those of one sample in this stage alone."""

    level: Level
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Chain:
    """The stages, and the types of all inputs, features and predictions that they hand on."""

    inputs: tuple[str, ...]
    stages: tuple[Stage, ...]
    values: Mapping[str, TensorType]
    batch: str | None  # the symbol of the batch; None where its size is fixed
    signature: Signature
    batch_range: tuple[int, int | None] = (1, None)  # the sizes of a dynamic batch that the stages are right for
    scheme: str = ""  # as a spec, where it is known

    @property
    def macs(self) -> tuple[int, ...]:
        """What one sample costs that leaves at each exit: all stages so far, the heads before it among them."""
        return tuple(itertools.accumulate(stage.macs for stage in self.stages))

    def read_later(self, exit: int) -> tuple[str, ...]:
        """The values that stages after an exit read, and that are there by then."""
        known = {*self.inputs, *(name for stage in self.stages[: exit + 1] for name in stage.gives)}
        later = dict.fromkeys(name for stage in self.stages[exit + 1 :] for name in stage.reads)
        return tuple(name for name in later if name in known)

    @property
    def separable(self) -> bool:
        """Whether some samples can go on without the others: each value has one dimension that counts samples and
        nothing else, predictions their first, or has nothing to do with them; and stages take as few as there are."""
        if (
            self.batch is None
            or self.batch_range[0] > 1
            or any(self.sample_dim(stage.gives[-1]) != 0 for stage in self.stages)
        ):
            return False
        handed_on = {name for exit in range(len(self.stages)) for name in self.read_later(exit)}
        return all(self.sample_dim(name) is not None or not self._knows_batch(name) for name in handed_on)

    def sample_dim(self, name: str) -> int | None:
        """The dimension of a value that counts samples; None where it has none, or where they are mixed with others."""
        shape = self.values[name].shape
        found = [dim for dim, size in enumerate(shape) if _mentions(size, self.batch)]
        return found[0] if len(found) == 1 and shape[found[0]] == Size(1, (str(self.batch),)) else None

    def _knows_batch(self, name: str) -> bool:
        return any(_mentions(size, self.batch) for size in self.values[name].shape)


def _mentions(size: Size, symbol: str | None) -> bool:
    """Whether the size depends on the symbol; symbols may stand for expressions, such as `(s0//2)`."""
    return symbol is not None and any(symbol in one for one in size.symbols)
