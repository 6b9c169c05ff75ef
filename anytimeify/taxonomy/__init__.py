"""Labels of several granularities: which classes there are, finest first, and which coarser class each belongs to."""

from anytimeify.taxonomy.data import Taxonomy, coarser

__all__ = ["Taxonomy", "coarser"]
