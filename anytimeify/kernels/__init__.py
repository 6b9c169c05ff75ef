"""Fast forms of triangular layers: only the elements that a block-triangular weight has are multiplied."""

from anytimeify.kernels.choice import Form, Kind, choices, forget, form, kind
from anytimeify.kernels.layers import TriangularConv, TriangularLinear
from anytimeify.kernels.operators import triangular_conv, triangular_linear
from anytimeify.kernels.staircase import Staircase, ends_of, staircase

__all__ = [
    "Form",
    "Kind",
    "Staircase",
    "TriangularConv",
    "TriangularLinear",
    "choices",
    "ends_of",
    "forget",
    "form",
    "kind",
    "staircase",
    "triangular_conv",
    "triangular_linear",
]
