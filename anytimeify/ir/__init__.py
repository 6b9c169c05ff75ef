"""The representation that everything reads and writes: programs, their types, and what stands at a node."""

from anytimeify.ir.captured import PAIR, Captured, Reinitialised, Signature, batches_in_words
from anytimeify.ir.levels import AllOutputs, Cost, Level, Outputs
from anytimeify.ir.origins import Origin, meta_of
from anytimeify.ir.program import Program, result_of
from anytimeify.ir.structures import Constant, Results, Structure, children
from anytimeify.ir.types import Size, TensorType, type_text

__all__ = [
    "PAIR",
    "AllOutputs",
    "Captured",
    "Constant",
    "Cost",
    "Level",
    "Origin",
    "Outputs",
    "Program",
    "Reinitialised",
    "Results",
    "Signature",
    "Size",
    "Structure",
    "TensorType",
    "batches_in_words",
    "children",
    "meta_of",
    "result_of",
    "type_text",
]
