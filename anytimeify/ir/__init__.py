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

__all__ = [
    "PAIR",
    "Captured",
    "Cost",
    "Level",
    "Origin",
    "Outputs",
    "Program",
    "Signature",
    "Size",
    "TensorType",
    "meta_of",
    "result_of",
    "type_text",
]
