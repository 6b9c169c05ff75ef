"""What the tests of models share."""

from __future__ import annotations

from torch import Tensor


def close(result: Tensor, expected: Tensor) -> bool:
    return bool((result - expected).abs().max() <= 1e-5 * expected.abs().max())
