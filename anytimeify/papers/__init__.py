"""The networks of the papers: plain backbones, the scheme that makes them anytime models, how they are trained."""

from anytimeify.papers.catalogue import entries, names, recipe
from anytimeify.papers.recipe import Entry, Recipe, alone
from anytimeify.train import Optimiser, Schedule, Training

__all__ = ["Entry", "Optimiser", "Recipe", "Schedule", "Training", "alone", "entries", "names", "recipe"]
