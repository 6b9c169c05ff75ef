"""Labels of several granularities: which classes there are, finest first, and which coarser class each belongs to."""

from anytimeify.taxonomy.data import Taxonomy, coarser
from anytimeify.taxonomy.objective import ReadsGranularities

__all__ = ["ReadsGranularities", "Taxonomy", "coarser"]
