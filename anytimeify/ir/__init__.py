"""The representation that everything reads and writes: programs, their types, and what stands at a node."""

from anytimeify.ir.program import (
    PAIR,
    Captured,
    Cost,
    Level,
    Origin,
    Outputs,
    Program,
    Signature,
    Size,
    TensorType,
    meta_of,
    result_of,
    type_text,
)
from anytimeify.ir.structures import Constant, Results, Structure, children

__all__ = [
    "PAIR",
    "Captured",
    "Constant",
    "Cost",
    "Level",
    "Origin",
    "Outputs",
    "Program",
    "Results",
    "Signature",
    "Size",
    "Structure",
    "TensorType",
    "children",
    "meta_of",
    "result_of",
    "type_text",
]
