"""`WithoutRandomness`: random operations give their mean, so that two programs that draw in another order agree.

Dropout then keeps everything, stochastic depth every sample, noise is zero. What has no mean here (permutations,
choices) starts from one and the same random state at every call. It works below autograd, on what modules and functions
come down to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from anytimeify._torch import OpOverload, TorchDispatchMode, schema
from anytimeify.rules.means import MEANS
from anytimeify.rules.training import is_random

__all__ = ["WithoutRandomness"]


class WithoutRandomness(TorchDispatchMode):
    """The caller puts the random state back: see `anytimeify.capture.compare.seeded`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not is_random(func):
            return func(*args, **kwargs)
        if func in MEANS:
            return MEANS[func](*args, **kwargs)
        args, kwargs = _without_dropout(func, args, kwargs)
        torch.manual_seed(0)
        return func(*args, **kwargs)


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
