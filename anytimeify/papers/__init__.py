"""The networks of the papers: plain backbones, the scheme that makes them anytime models, how they are trained; and
their experiments."""

from anytimeify.papers.catalogue import entries, names, recipe
from anytimeify.papers.experiments import experiment, experiment_names, experiments
from anytimeify.papers.recipe import Entry, Recipe, alone
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = [
    "Entry",
    "Optimiser",
    "Recipe",
    "Schedule",
    "Training",
    "alone",
    "entries",
    "experiment",
    "experiment_names",
    "experiments",
    "names",
    "recipe",
]
