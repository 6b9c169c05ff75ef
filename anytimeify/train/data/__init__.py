"""Data to train on, by name: real ones in the formats that they come in, and generated ones."""

from anytimeify.train.data.registry import data_kinds, open_data
from anytimeify.train.data.samples import Data, DataKind, Held, Items, Samples

__all__ = ["Data", "DataKind", "Held", "Items", "Samples", "data_kinds", "open_data"]
