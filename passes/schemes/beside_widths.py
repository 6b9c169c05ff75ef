"""Schemes of one number a level beside the widths of nested channels: level k has the k-th of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.ir.rewritten import LevelData
from anytimeify.ir.sizes import ProgramSize
from anytimeify.passes.scheme import Composed, Scheme
from anytimeify.passes.schemes.nested_channels import NestedChannels

__all__ = ["BesideWidths"]


class BesideWidths(Composed):
    """Base of such pairs: what is the same whatever stands beside the widths."""

    channels: NestedChannels

    def check_pairs(self, other: Scheme, what: str, numbers: Sequence[float], why: str) -> None:
        """Refuses levels that do not pair up. `what`: a number of the other scheme, whose field is its plural; `why`:
        the channels have to be dense."""
        widths = self.channels.widths
        if len(numbers) != len(widths):
            raise SchemeError(
                f"{what}s has {len(numbers)} levels and widths {len(widths)}: level k has the k-th of both, so give as "
                f"many of one as of the other, such as {what}s=0.5,0.5,1 and widths=0.5,1,1"
            )
        if self.channels.connectivity != "dense":
            raise SchemeError(
                f"connectivity={self.channels.connectivity!r}: together with {other.name} it has to be 'dense', "
                f"for {why}"
            )
        for level, (one, two) in enumerate(pairwise(zip(numbers, widths, strict=True))):
            if one == two:
                raise SchemeError(
                    f"levels {level} and {level + 1} both have {what} {one[0]:g} and width {one[1]:g}; leave one out"
                )

    def described(self, what: str, numbers: Sequence[float]) -> tuple[LevelData, ...]:
        """The levels, the last one the backbone's."""
        last = len(numbers) - 1
        return tuple(
            LevelData(f"{what} {number:g}, width {width:g}", backbone=0 if level == last else None)
            for level, (number, width) in enumerate(zip(numbers, self.channels.widths, strict=True))
        )

    @property
    def narrowed(self) -> str | tuple[str, ...]:
        return self.channels.where

    def kept(self, axes: Axes) -> list[Widths]:
        return self.channels.kept(axes)

    @property
    def copies(self) -> int:
        return self.channels.copies

    @property
    def sample(self) -> tuple[Scheme, ProgramSize]:
        return self, ProgramSize(1, 1)

    @property
    def reads_values(self) -> str:
        return self.channels.reads_values

    def measured(self, captured: Captured, axes: Axes) -> tuple[BesideWidths, str]:
        channels, note = self.channels.measured(captured, axes)
        return replace(self, channels=channels), note  # type: ignore[type-var]  # every subclass is a dataclass

    def prepare(self, captured: Captured, axes: Axes) -> Captured:
        return self.channels.prepare(captured, axes)

    def default_loss(self) -> nn.Module:
        return self.channels.default_loss()
