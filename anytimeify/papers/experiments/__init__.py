"""The experiments of the papers: one file a paper, one entry a figure or table."""

from anytimeify.papers.experiments.catalogue import experiment, experiment_names, experiments
from anytimeify.papers.experiments.experiment import Contender, Experiment, Study
from anytimeify.papers.experiments.report import Report
from anytimeify.papers.experiments.setting import Setting

__all__ = [
    "Contender",
    "Experiment",
    "Report",
    "Setting",
    "Study",
    "experiment",
    "experiment_names",
    "experiments",
]
