"""The masked weights of all triangular layers of a training step on a GPU, made before the step.

Layer by layer, a cast and a product with a mask are small operations, which a GPU runs faster than Python asks for
them. Here a few operations do that for all weights of a group, and in the backward pass for all their gradients. A
group is as large as a bucket of `DistributedDataParallel`, so that gradients are ready one group after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytimeify._torch import copy_all, is_plain, multiply_all, saves_as_it_likes
from anytimeify.kernels.masked import computed_in, mask
from anytimeify.kernels.staircase import Staircase

__all__ = ["Weight", "masked_weight", "masked_weights"]

_DEVICES = ("cuda",)  # where an operation on many tensors is few kernels
_GROUP = 25 << 20  # bytes
_MADE: ContextVar[Mapping[int, Tensor] | None] = ContextVar("masked weights", default=None)


class Weight(NamedTuple):
    """The weight of a layer, and what it has of it."""

    layer: nn.Module
    tensor: Tensor
    shape: Staircase


class masked_weights(AbstractContextManager[None]):  # noqa: N801  # is called like a function
    """Within a `with` block the masked weights of these layers are there, for whom gradients are wanted and where no
    compiler, tracer or function transform looks on."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self.weights = weights
        self.before: Token[Mapping[int, Tensor] | None] | None = None

    def __enter__(self) -> None:
        if torch.is_grad_enabled() and saves_as_it_likes():
            self.before = _MADE.set(dict(_made(self.weights)))

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            _MADE.reset(self.before)


def masked_weight(layer: nn.Module) -> Tensor | None:
    """What was made for a layer; None where it has to mask its weight itself."""
    made = _MADE.get()
    return None if made is None else made.get(id(layer))


def _made(weights: Iterable[Weight]) -> Iterator[tuple[int, Tensor]]:
    for group in _groups(weights):
        first = group[0].tensor
        dtype = computed_in(first, first.device.type)
        masks = [_mask(one.shape, one.tensor.shape, one.tensor.stride(), dtype, first.device) for one in group]
        found: tuple[Tensor, ...] = _Masked.apply(masks, *(one.tensor for one in group))  # type: ignore[no-untyped-call]
        yield from ((id(one.layer), tensor) for one, tensor in zip(group, found, strict=True))


def _groups(weights: Iterable[Weight]) -> Iterator[list[Weight]]:
    """Neighbours of one type of numbers on one device."""
    group: list[Weight] = []
    size, kind = 0, None
    for one in weights:
        if not one.shape.holes or one.tensor.device.type not in _DEVICES or not is_plain(one.tensor):
            continue
        now = (one.tensor.dtype, one.tensor.device)
        if group and (now != kind or size + one.tensor.nbytes > _GROUP):
            yield group
            group, size = [], 0
        group.append(one)
        size, kind = size + one.tensor.nbytes, now
    if group:
        yield group


@cache
def _mask(
    shape: Staircase, size: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """As large as a weight, and with its strides: what is alike in that is multiplied in one go."""
    with torch.inference_mode(False), torch.no_grad():
        whole = torch.empty_strided(size, stride, dtype=dtype, device=device)
        return whole.copy_(mask(shape, whole))


class _Masked(torch.autograd.Function):
    """The weights in the type of the masks, times these."""

    @staticmethod
    def forward(ctx: Any, masks: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.masks, ctx.dtype = masks, weights[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(multiply_all(_cast(weights, masks[0].dtype), list(masks)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [(grad, mask) for grad, mask in zip(grads, ctx.masks, strict=True) if grad is not None]
        if torch.is_grad_enabled():  # for derivatives of higher order
            found = [(grad * mask).to(ctx.dtype) for grad, mask in known]
        elif known:
            given = [_strided(grad, mask.stride()) for grad, mask in known]
            found = _cast(multiply_all(given, [mask for _, mask in known]), ctx.dtype)
        results = iter(found if known else ())
        return (None, *(None if grad is None else next(results) for grad in grads))


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if tensors[0].dtype is dtype:
        return list(tensors)
    result = [torch.empty_like(one, dtype=dtype) for one in tensors]
    copy_all(result, list(tensors))
    return result


def _strided(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """With these strides; only where a dimension of more than one element has another it is copied."""
    if tensor.stride() == stride:
        return tensor
    if all(size == 1 or a == b for size, a, b in zip(tensor.shape, tensor.stride(), stride, strict=True)):
        return tensor.as_strided(tensor.shape, stride)
    return tensor.new_empty_strided(tensor.shape, stride).copy_(tensor)
