"""The experiments of the papers: one file a paper, one entry a figure or table."""

from anytimeify.papers.experiments.catalogue import experiment, experiment_names, experiments
from anytimeify.papers.experiments.experiment import Experiment
from anytimeify.papers.experiments.report import Report
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study

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
