"""When two results are the same.

Values that are only kept or moved, and calls on the very same tensors, are compared with `torch.equal`. Everything else
is compared here: tensors at other addresses, of other strides or sizes may be computed by another kernel, which adds up
in another order, and which kernel that is depends on the processor.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["close"]


def close(result: Tensor, expected: Tensor) -> bool:
    """Of one type and shape, and no further apart than rounding of that type, relative to the largest magnitude."""
    if result.dtype != expected.dtype or result.shape != expected.shape:
        return False
    if not (result.is_floating_point() or result.is_complex()):
        return torch.equal(result, expected)
    with torch.no_grad():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        return torch.allclose(result, expected, rtol=0.0, atol=rounding(expected.dtype) * scale, equal_nan=True)


def rounding(dtype: torch.dtype) -> float:
    """What the layers of a test network may add up to; eight last bits of half precision."""
    return 1e-10 if dtype in (torch.float64, torch.complex128) else max(1e-5, 8 * torch.finfo(dtype).eps)
