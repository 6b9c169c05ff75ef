"""`WithoutRandomness`: random operations give their mean, so that two programs that draw in another order agree.

Dropout then keeps everything, stochastic depth every sample, noise is zero. What has no mean here (permutations,
choices) starts from one and the same random state at every call. It works below autograd, on what modules and functions
come down to.

The mean of a function is not the function of a mean: coins that are thrown as `floor(keep + rand(n))` have the mean
`keep`, as those of `bernoulli` have, so sums with uniform numbers are followed to where they are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anytimeify._torch import OpOverload, TorchDispatchMode, schema
from anytimeify.rules.means import MEANS, ROUNDED, SUMS, UNIFORM
from anytimeify.rules.training import is_random

__all__ = ["WithoutRandomness"]


class WithoutRandomness(TorchDispatchMode):
    """The caller puts the random state back: see `anytimeify.capture.compare.seeded`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self._uniform: dict[int, Tensor] = {}  # numbers in [0, 1), and sums with them, by their memory

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not is_random(func):
            return self._of_means(func, args, kwargs)
        if func in MEANS:
            mean = MEANS[func](*args, **kwargs)
            if func in UNIFORM and not args[1:]:  # else of another range
                self._uniform[mean.data_ptr()] = mean
            return mean
        args, kwargs = _without_dropout(func, args, kwargs)
        torch.manual_seed(0)
        return func(*args, **kwargs)

    def _of_means(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        followed = func in SUMS or func in ROUNDED
        if not followed or not any(map(self._is_uniform, args)):
            return func(*args, **kwargs)
        if func in ROUNDED:
            return ROUNDED[func](args[0], 0.5)
        result = func(*args, **kwargs)
        self._uniform[result.data_ptr()] = result
        return result

    def _is_uniform(self, operand: Any) -> bool:
        return isinstance(operand, Tensor) and operand.numel() > 0 and operand.data_ptr() in self._uniform


def _without_dropout(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Fused attention and recurrent layers of GPUs take a probability."""
    positional = list(args)
    for position, argument in enumerate(schema(func).arguments):
        if argument.name in ("dropout_p", "dropout"):
            if position < len(positional):
                positional[position] = 0.0
            elif argument.name in kwargs:
                kwargs[argument.name] = 0.0
    return tuple(positional), kwargs
