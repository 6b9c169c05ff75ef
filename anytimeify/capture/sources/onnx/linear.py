"""Products of matrices. `Linear` is ours: what `layers` makes of a product with a weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.table import Row

__all__ = ["ROWS"]


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  # names of ONNX
    transB: int = 0,  # noqa: N803  # names of ONNX
) -> Tensor:
    a, b = a.t() if transA else a, b if transB else b.t()
    if alpha == beta == 1 and c is not None and tuple(c.shape) in ((b.shape[0],), (1, b.shape[0])):
        return F.linear(a, b, c.reshape(-1))
    result = F.linear(a, b)
    result = result * alpha if alpha != 1 else result
    return result if c is None else result.add(c * beta if beta != 1 else c)


def _einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *operands)


ROWS = (
    Row("MatMul", 1, torch.matmul),
    Row("Linear", 1, F.linear),
    Row("Gemm", 11, _gemm),
    Row("Einsum", 12, _einsum),
)
