"""Initial values of a tensor of another size, drawn in the manner of the original tensor.

A wider copy of a layer starts as its initialiser would start it, but all that is known are values which that
initialiser drew at the backbone's sizes. They tell: constants stay constants; a weight keeps its gain, the standard
deviation times the square root of a fan, at the new fan. Which fan that is (inputs, outputs, their mean, or none: a
fixed 0.02) is what most of the network's other weights have the same gain by; where they do not tell, the one by which
the gain is a usual one; where none is, the inputs, so that signals stay as large as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Spread", "resized", "spreads"]

# What a variance is inversely proportional to, of the inputs and outputs of a weight, the default first.
_FANS: tuple[Callable[[float, float], float], ...] = (
    lambda inputs, outputs: inputs,
    lambda inputs, outputs: outputs,
    lambda inputs, outputs: (inputs + outputs) / 2,
    lambda inputs, outputs: 1.0,
)
# Usual variances times each of them: He, LeCun and torch's own layers; He; Glorot; 0.01 and 0.02.
_USUAL = ((2.0, 1.0, 1 / 3), (2.0,), (1.0,), (1e-4, 4e-4))
_CLOSE = 0.1  # relative, of a variance that is estimated from some hundred values or more


@dataclass(frozen=True)
class Spread:
    """The variance of a weight's elements, and how many there are and of what shape."""

    variance: float
    entries: int
    shape: tuple[int, ...]

    def gain(self, fan: int) -> float:
        """The logarithm of the squared gain by one of the fans."""
        return math.log(self.variance * _fan(fan, self.shape))

    def resembles(self, other: Spread, fan: int) -> bool:
        """Whether both may have one gain, as far as chance goes."""
        chance = 3 * math.sqrt(2 / self.entries + 2 / other.entries)
        return abs(self.gain(fan) - other.gain(fan)) < chance + 0.02


def spreads(tensors: Iterable[Tensor]) -> tuple[Spread, ...]:
    """Those of the weights among some tensors, each once; constants have none, and vectors are no weights."""
    weights = {id(one): one.detach() for one in tensors if one.ndim > 1 and one.is_floating_point() and not one.is_meta}
    found = (
        Spread(float(one.float().var()), one.numel(), tuple(one.shape)) for one in weights.values() if one.numel() > 1
    )
    return tuple(spread for spread in found if spread.variance > 0)


def resized(values: Tensor, shape: Sequence[int], others: Sequence[Spread] = ()) -> Tensor:
    """A tensor of `shape` with values drawn from those of `values`; parameters stay parameters.

    Draws come from torch's generator; nothing is drawn on the meta device. The fans are those of `(outputs, inputs,
    *kernel)`. `others`: the spreads of the network's weights, drawn by the same initialisers.
    """
    source = values.detach()
    if source.is_meta:
        result = source.new_empty(tuple(shape))
    elif tuple(shape) == tuple(source.shape):
        result = source.clone()
    elif not source.numel() or bool((source == source.flatten()[0]).all()):
        result = source.new_full(tuple(shape), float(source.flatten()[0]) if source.numel() else 0.0)
    else:
        picked = torch.randint(source.numel(), (math.prod(shape),))
        result = source.flatten()[picked].reshape(tuple(shape))
        if source.ndim > 1 and len(shape) == source.ndim:
            result = result * _ratio(source, tuple(shape), others)
    return nn.Parameter(result, values.requires_grad) if isinstance(values, nn.Parameter) else result


def _ratio(source: Tensor, shape: tuple[int, ...], others: Sequence[Spread]) -> float:
    """Of the standard deviations at the new and at the old shape."""
    (own,) = spreads([source]) or (None,)
    fan = 0 if own is None else _fan_of(own, others)
    return math.sqrt(_fan(fan, source.shape) / _fan(fan, shape))


def _fan_of(own: Spread, others: Sequence[Spread]) -> int:
    """The fan that a weight was initialised by."""
    votes = [
        sum(own.resembles(other, fan) for other in others if other.shape != own.shape) for fan in range(len(_FANS))
    ]
    best = [fan for fan, count in enumerate(votes) if count == max(votes)]
    return min(best, key=lambda fan: _unusual(own, fan))


def _unusual(own: Spread, fan: int) -> float:
    """How far a gain is from those that are usual; the same for all that are far from any."""
    nearest = min(abs(own.gain(fan) - math.log(usual)) for usual in _USUAL[fan])
    return nearest if nearest < _CLOSE else math.inf


def _fan(kind: int, shape: Sequence[int]) -> float:
    kernel = math.prod(shape[2:])
    return _FANS[kind](float(shape[1] * kernel), float(shape[0] * kernel))
