"""Training of anytime models: recipes as data, data by name, `fit` and `compare`."""

from typing import TYPE_CHECKING

from anytimeify.lazy import lazily
from anytimeify.train.data import Data, Held, Items, open_data
from anytimeify.train.encoding import as_json, training_of
from anytimeify.train.fitting import Run, fit
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther, Order, Part, Sandwich, Together
from anytimeify.train.phases import Phase, Teacher
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

if TYPE_CHECKING:
    from anytimeify.train.comparing import compare

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
    "compare",
    "fit",
    "open_data",
    "training_of",
]

_PLACES = {"compare": "anytimeify.train.comparing"}  # on top of the papers, which are trained by the rest

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _PLACES)
