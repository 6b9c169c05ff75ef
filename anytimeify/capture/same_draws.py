"""`SameDraws`: random operations draw the same numbers wherever, and however often, they are called.

An element of what is drawn depends on its place alone: two programs that draw in another order, or more often, draw
alike, and fewer channels or samples have the numbers of the first of many. What is drawn otherwise (permutations,
choices) starts from one and the same random state, and depends on the shape as well. It works below autograd, on what
modules and functions come down to. The caller puts the random state back: see `anytimeify.capture.compare.seeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from anytimeify._torch import TorchDispatchMode
from anytimeify.ir import Program
from anytimeify.rules.training import draws, is_random

__all__ = ["SameDraws", "same_draws"]

aten = torch.ops.aten
# Of a number in [0, 1), by the parameters of the distribution.
_Quantile = Callable[..., Tensor]


def _uniform(u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * u


def _normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    result: Tensor = mean + std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    return result


def _exponential(u: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-u) / rate


def _coin(u: Tensor, p: float = 0.5) -> Tensor:
    return (u < p).to(u)


# Operations that are given a size, that give a tensor like their first, and that write to it.
_OF_SIZE: Mapping[Any, _Quantile] = {aten.rand.default: _uniform, aten.randn.default: _normal}
_LIKE: Mapping[Any, _Quantile] = {
    aten.rand_like.default: _uniform,
    aten.randn_like.default: _normal,
    aten.uniform.default: _uniform,
    aten.normal_functional.default: _normal,
    aten.exponential.default: _exponential,
    aten.bernoulli.p: _coin,
}
_IN_PLACE: Mapping[Any, _Quantile] = {
    aten.uniform_.default: _uniform,
    aten.normal_.default: _normal,
    aten.exponential_.default: _exponential,
    aten.bernoulli_.float: _coin,
}
_PARAMETERS = ("mean", "std", "lambd", "from", "to", "p")  # in the order of their schemas


class SameDraws(TorchDispatchMode):
    """As the module says."""

    supports_higher_order_operators = True  # which draw nothing themselves

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not is_random(func):
            return func(*args, **kwargs)
        torch.manual_seed(0)
        result = func(*args, **kwargs)
        given = [*args[1:], *(kwargs[name] for name in _PARAMETERS if name in kwargs)]
        if func in _OF_SIZE:
            return result.copy_(_OF_SIZE[func](_places(result)))
        if func in _LIKE:
            return result.copy_(_LIKE[func](_places(result), *given))
        if func in _IN_PLACE:
            return result.copy_(_IN_PLACE[func](_places(result), *given))
        if func in (aten.bernoulli.default, aten.bernoulli_.Tensor):
            return result.copy_(_places(result) < args[-1])
        return result


def _places(like: Tensor) -> Tensor:
    """A number in [0, 1) for every element, by its place."""
    generator = torch.Generator().manual_seed(0)
    result = torch.zeros(like.shape, dtype=torch.float64)
    for dim, size in enumerate(like.shape):
        numbers = torch.rand(size, generator=generator, dtype=torch.float64)
        generator.manual_seed(dim + 1)
        result += numbers.reshape([size] + [1] * (like.dim() - dim - 1))
    return result.frac().to(like.device)


def same_draws(program: Program) -> AbstractContextManager[object]:
    """The mode, around what computes a program; nothing where the program draws nothing."""
    return SameDraws() if any(map(draws, program.graph.nodes)) else nullcontext()
