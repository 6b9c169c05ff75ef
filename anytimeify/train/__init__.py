"""Training of anytime models: recipes as data."""

from anytimeify.train.encoding import as_json, training_of
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther, Order, Part, Sandwich, Together
from anytimeify.train.phases import Phase, Teacher
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = [
    "OneAfterTheOther",
    "Optimiser",
    "Order",
    "Part",
    "Phase",
    "Sandwich",
    "Schedule",
    "Teacher",
    "Together",
    "Training",
    "as_json",
    "training_of",
]
