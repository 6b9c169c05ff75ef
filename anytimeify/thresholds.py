"""Thresholds for an average cost: the public names of `anytimeify.early_exit.thresholds`."""

from anytimeify.early_exit.thresholds import (
    Evaluation,
    Recorded,
    evaluate,
    for_accuracy,
    for_budget,
    record,
    temperatures,
)

__all__ = ["Evaluation", "Recorded", "evaluate", "for_accuracy", "for_budget", "record", "temperatures"]
