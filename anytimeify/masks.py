"""Masks of nested weights: the public names of `anytimeify.runtime.masks`."""

from anytimeify.runtime.masks import Densities, MaskSchedule, densities, refresh

__all__ = ["Densities", "MaskSchedule", "densities", "refresh"]
