"""Random operations by their means: what each of them would give if it drew nothing but its mean.

Operations as they are below autograd, in place or not. What has no mean here (permutations, choices) has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["MEANS", "ROUNDED", "SUMS", "UNIFORM"]

aten = torch.ops.aten
_PARAMETERS = ("mean", "std", "lambd", "from", "to")  # of distributions, in the order of their schemas


def _filled(parameter: Callable[..., float]) -> Callable[..., Tensor]:
    """An operation in place, by the mean that its parameters give."""

    def fill(x: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        return x.fill_(parameter(*args, *(kwargs[name] for name in _PARAMETERS if name in kwargs)))

    return fill


def _like(parameter: Callable[..., float]) -> Callable[..., Tensor]:
    """An operation that gives a tensor like its first."""

    def full(x: Tensor, *args: Any, generator: Any = None, dtype: Any = None, **kwargs: Any) -> Tensor:
        given = (*args, *(kwargs[name] for name in _PARAMETERS if name in kwargs))
        return torch.full_like(x, parameter(*given), dtype=dtype or x.dtype)

    return full


def _full(value: float) -> Callable[..., Tensor]:
    """An operation that gives a tensor of a size."""

    def full(size: Any, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        return torch.full(size, value, **{**kwargs, "dtype": kwargs.get("dtype") or torch.get_default_dtype()})

    return full


def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    # its derivative multiplies by 1 / (1 - p) where the mask is set
    return x / (1 - p) if p < 1 else torch.zeros_like(x), torch.full_like(x, p < 1, dtype=torch.bool)


def _rrelu(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    slope = (lower + upper) / 2
    if training:
        noise.copy_(torch.where(x <= 0, slope, 1.0))
    return torch.where(x <= 0, x * slope, x)


MEANS: Mapping[object, Callable[..., Any]] = {
    aten.bernoulli.default: lambda x, generator=None: x.clone(),
    aten.bernoulli.p: _like(lambda p: p),
    aten.bernoulli_.float: _filled(lambda p=0.5: p),
    aten.bernoulli_.Tensor: lambda x, p, generator=None: x.copy_(p),
    aten.exponential.default: _like(lambda rate=1.0: 1 / rate),
    aten.exponential_.default: _filled(lambda rate=1.0: 1 / rate),
    aten.native_dropout.default: _native_dropout,
    aten.normal_.default: _filled(lambda mean=0.0, std=1.0: mean),
    aten.normal_functional.default: _like(lambda mean=0.0, std=1.0: mean),
    aten.rand.default: _full(0.5),
    aten.rand_like.default: _like(lambda: 0.5),
    aten.randn.default: _full(0.0),
    aten.randn_like.default: _like(lambda: 0.0),
    aten.rrelu_with_noise.default: _rrelu,
    aten.rrelu_with_noise_.default: lambda x, *args, **named: x.copy_(_rrelu(x, *args, **named)),
    aten.uniform.default: _like(lambda low=0.0, high=1.0: (low + high) / 2),
    aten.uniform_.default: _filled(lambda low=0.0, high=1.0: (low + high) / 2),
}

# Coins that are thrown as `floor(keep + rand(n))` have the mean `keep`: numbers in [0, 1), sums with them, and what
# rounds those, with the operation that takes half of one away instead.
UNIFORM = frozenset({aten.rand.default, aten.rand_like.default, aten.uniform_.default})
SUMS = frozenset({aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar, aten.add_.Scalar})
ROUNDED: Mapping[object, Callable[..., Any]] = {
    aten.floor.default: aten.sub.Scalar,
    aten.floor_.default: aten.sub_.Scalar,
}
