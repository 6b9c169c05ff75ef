"""Initial values of a tensor of another size, drawn in the manner of the one that it is made after.

A wider copy of a layer starts as its initialiser would start it, but all that is known are values which that
initialiser drew at the backbone's size. They tell: constants stay constants; where the spread of a weight is that of
one of the usual laws (fan-in, fan-out or both, with any of the usual gains) it follows the law to the new size; any
other spread (a fixed 0.02) stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["resized"]

# Variances of the usual initialisers, times a fan.
_LAWS: tuple[tuple[float, Callable[[float, float], float]], ...] = (
    (2.0, lambda fan_in, fan_out: fan_in),  # He
    (1.0, lambda fan_in, fan_out: fan_in),  # LeCun
    (1 / 3, lambda fan_in, fan_out: fan_in),  # torch's linear and convolutional layers
    (2.0, lambda fan_in, fan_out: fan_out),
    (1.0, lambda fan_in, fan_out: (fan_in + fan_out) / 2),  # Glorot
)
_FIXED = (0.01, 0.02)  # standard deviations that do not depend on any size
_CLOSE = 0.05  # relative, of a standard deviation that is estimated from a hundred values or more


def resized(values: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` with values drawn from those of `values`; parameters stay parameters.

    Draws come from torch's generator. The fans are those of `(outputs, inputs, *kernel)`.
    """
    source = values.detach()
    if tuple(shape) == tuple(source.shape):
        result = source.clone()
    elif not source.numel() or bool((source == source.flatten()[0]).all()):
        result = source.new_full(tuple(shape), float(source.flatten()[0]) if source.numel() else 0.0)
    else:
        picked = torch.randint(source.numel(), (math.prod(shape),))
        result = source.flatten()[picked].reshape(tuple(shape))
        if source.ndim > 1 and len(shape) == source.ndim:
            result = result * _ratio(source, shape)
    return nn.Parameter(result, values.requires_grad) if isinstance(values, nn.Parameter) else result


def _ratio(source: Tensor, shape: Sequence[int]) -> float:
    spread = float(source.float().std())
    best, ratio = min(_CLOSE, *(abs(spread / fixed - 1) for fixed in _FIXED)), 1.0
    for variance, fan in _LAWS:
        old, new = fan(*_fans(source.shape)), fan(*_fans(shape))
        error = abs(spread / math.sqrt(variance / old) - 1)
        if error < best:
            best, ratio = error, math.sqrt(old / new)
    return ratio


def _fans(shape: Sequence[int]) -> tuple[float, float]:
    kernel = math.prod(shape[2:])
    return float(shape[1] * kernel), float(shape[0] * kernel)
