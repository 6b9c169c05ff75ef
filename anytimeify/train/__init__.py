"""Training of anytime models: recipes as data, data by name, and `fit`."""

from anytimeify.train.data import Data, Held, Items, open_data
from anytimeify.train.encoding import as_json, training_of
from anytimeify.train.fitting import Run, fit
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther, Order, Part, Sandwich, Together
from anytimeify.train.phases import Phase, Teacher
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = [
    "Data",
    "Held",
    "Items",
    "OneAfterTheOther",
    "Optimiser",
    "Order",
    "Part",
    "Phase",
    "Run",
    "Sandwich",
    "Schedule",
    "Teacher",
    "Together",
    "Training",
    "as_json",
    "fit",
    "open_data",
    "training_of",
]
