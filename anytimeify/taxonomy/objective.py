"""What an objective for labels of several granularities has, for a model to tell it which ones there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from anytimeify.taxonomy.data import Taxonomy

__all__ = ["ReadsGranularities"]


@runtime_checkable
class ReadsGranularities(Protocol):
    """An objective that reads tuples of predictions, one of each granularity that a level or member has."""

    taxonomy: Taxonomy | None

    def bind(
        self,
        taxonomy: Taxonomy,
        levels: Sequence[Sequence[int]] | None = None,
        members: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`levels`, `members`: the granularities of each, by their places in the taxonomy."""
