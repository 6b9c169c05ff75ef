"""`anytimeify::triangular_conv` and `anytimeify::triangular_linear`, with all that torch wants to know of an operator.

`weight` has a row per output and a column per input, and every level has some of each: a row reads the columns of its
level and of those before. The other entries of the weight count as zero, whatever they hold, and their gradient is
zero. `rows` and `columns` are where the levels end: `[16, 32, 64]` with `levels=3` says that the first level has 16
rows, the second 16 more. Behind a concatenation every part has rows of every level; the ends of all its parts follow
each other: `[4, 8, 12, 14, 16, 18]` with `levels=3` are parts of 12 and 6 rows.

The memory format of the results follows that of the inputs, as for dense layers. Derivatives of every order exist, for
the gradients of a triangular layer are triangular layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from anytimeify.kernels import run
from anytimeify.kernels.products import Window
from anytimeify.kernels.staircase import Staircase, staircase

__all__ = ["triangular_conv", "triangular_linear"]

_LEVELS = "int[] rows, int[] columns, int levels"
_WINDOW = "int[] stride, int[] padding, int[] dilation"


@torch.library.custom_op(
    "anytimeify::triangular_conv",
    mutates_args=(),
    schema=f"(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}, {_WINDOW}) -> Tensor",
)
def triangular_conv(
    input: Tensor,  # torch's own name for it
    weight: Tensor,
    bias: Tensor | None,
    rows: Sequence[int],
    columns: Sequence[int],
    levels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The convolution of `input` (batch, channels, *size) with the triangular `weight` (rows, columns, *kernel)."""
    return run.conv(input, weight, bias, _shape(weight, rows, columns, levels), _window(stride, padding, dilation))


@torch.library.custom_op(
    "anytimeify::triangular_conv_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor input, Tensor weight, {_LEVELS}, {_WINDOW}, bool[] wanted) -> (Tensor, Tensor)",
)
def triangular_conv_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    levels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; empty tensors where not wanted."""
    shape, window = _shape(weight, rows, columns, levels), _window(stride, padding, dilation)
    dx, dw = run.conv_gradients(grad, input, weight, shape, window, (wanted[0], wanted[1]))
    return grad.new_empty(0) if dx is None else dx, grad.new_empty(0) if dw is None else dw


@torch.library.custom_op(
    "anytimeify::triangular_linear",
    mutates_args=(),
    schema=f"(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}) -> Tensor",
)
def triangular_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Sequence[int],
    columns: Sequence[int],
    levels: int,
) -> Tensor:
    """The product of `input` (..., columns) with the triangular `weight` (rows, columns)."""
    return run.linear(input, weight, bias, _shape(weight, rows, columns, levels))


@torch.library.custom_op(
    "anytimeify::triangular_linear_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor input, Tensor weight, {_LEVELS}, bool[] wanted) -> (Tensor, Tensor)",
)
def triangular_linear_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    levels: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; empty tensors where not wanted."""
    shape = _shape(weight, rows, columns, levels)
    dx, dw = run.linear_gradients(grad, input, weight, shape, (wanted[0], wanted[1]))
    return grad.new_empty(0) if dx is None else dx, grad.new_empty(0) if dw is None else dw


def _shape(weight: Tensor, rows: Sequence[int], columns: Sequence[int], levels: int) -> Staircase:
    return _shape_of(weight.shape, rows, columns, levels)


def _shape_of(weight: Sequence[int], rows: Sequence[int], columns: Sequence[int], levels: int) -> Staircase:
    return staircase(int(weight[0]), int(weight[1]), tuple(map(int, rows)), tuple(map(int, columns)), int(levels))


def _window(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Window:
    return Window(tuple(map(int, stride)), tuple(map(int, padding)), tuple(map(int, dilation)))


# -- shapes, for compilation and export --------------------------------------------------------------------------------


@triangular_conv.register_fake
def _(input: Tensor, weight: Tensor, bias: Any, *rest: Any) -> Tensor:
    *levels, stride, padding, dilation = rest
    _shape(weight, *levels)
    size = _window(stride, padding, dilation).size(input.shape[2:], weight.shape[2:])
    result = input.new_empty(input.shape[0], weight.shape[0], *size)
    return result.contiguous(memory_format=run.result_layout(input, weight))


@triangular_conv_backward.register_fake
def _(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    into = run.result_layout(input, weight)
    dx = input.new_empty(input.shape).contiguous(memory_format=into) if wanted[0] else grad.new_empty(0)
    return dx, torch.empty_like(weight) if wanted[1] else grad.new_empty(0)


@triangular_linear.register_fake
def _(input: Tensor, weight: Tensor, bias: Any, *levels: Any) -> Tensor:
    _shape(weight, *levels)
    return input.new_empty(*input.shape[:-1], weight.shape[0])


@triangular_linear_backward.register_fake
def _(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    dx = input.new_empty(input.shape) if wanted[0] else grad.new_empty(0)
    return dx, torch.empty_like(weight) if wanted[1] else grad.new_empty(0)


# -- derivatives -------------------------------------------------------------------------------------------------------


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.rest = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(operator: Any, backward: Any, channels: int) -> None:
    """Register the derivatives of an operator and of its backward; `channels` is the dimension of the outputs."""

    def gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:2])
        dx = dw = bias = None
        if any(wanted):
            dx, dw = backward(grad, x, weight, *ctx.rest, wanted)
        if ctx.needs_input_grad[2]:
            others = [dim for dim in range(grad.dim()) if dim != channels % grad.dim()]
            bias = grad.sum(others) if others else grad
        found = (dx if wanted[0] else None, dw if wanted[1] else None, bias)
        return (*found, *[None] * len(ctx.rest))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.wanted = inputs
        grad, x, weight, *ctx.rest = tensors
        ctx.save_for_backward(grad, x, weight)

    def second(ctx: Any, to_dx: Tensor | None, to_dw: Tensor | None) -> tuple[Any, ...]:
        # dx is linear in (grad, weight) and dw in (grad, x): each is the layer's own derivative in another argument.
        grad, x, weight = ctx.saved_tensors
        needs, rest = ctx.needs_input_grad, ctx.rest
        to_dx, to_dw = (to_dx if ctx.wanted[0] else None), (to_dw if ctx.wanted[1] else None)
        to_grad = to_x = to_weight = None
        if needs[0]:
            terms = [operator(to_dx, weight, None, *rest)] if to_dx is not None else []
            terms += [operator(x, to_dw, None, *rest)] if to_dw is not None else []
            to_grad = sum(terms[1:], terms[0]) if terms else None
        if needs[1] and to_dw is not None:
            to_x = backward(grad, x, to_dw, *rest, [True, False])[0]
        if needs[2] and to_dx is not None:
            to_weight = backward(grad, to_dx, weight, *rest, [False, True])[1]
        return (to_grad, to_x, to_weight, *[None] * len(rest), None)

    operator.register_autograd(gradients, setup_context=_remember)
    backward.register_autograd(second, setup_context=remember)


_differentiate(triangular_conv, triangular_conv_backward, 1)
_differentiate(triangular_linear, triangular_linear_backward, -1)


# -- autocast: as convolutions and linear layers, in the short type ----------------------------------------------------

_LIBRARY = torch.library.Library("anytimeify", "FRAGMENT")


def _autocast(operator: Any, device: str, key: str) -> None:
    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device))

    def lowered(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return operator(cast(x), cast(weight), cast(bias), *rest)

    _LIBRARY.impl(operator._qualname.partition("::")[2], lowered, key)


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _autocast(triangular_conv, _device, _key)
    _autocast(triangular_linear, _device, _key)


# -- costs -------------------------------------------------------------------------------------------------------------


def _conv_flops(
    x: Sequence[int], weight: Sequence[int], bias: Any, *rest: Any, out_shape: Sequence[int], **_: Any
) -> int:
    positions = out_shape[0] * math.prod(out_shape[2:])
    return int(2 * positions * math.prod(weight[2:]) * _shape_of(weight, *rest[:3]).kept)


def _conv_backward_flops(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    forward = _conv_flops(x, weight, None, *rest[:3], out_shape=grad)
    return int(forward * sum(rest[-1]))


def _linear_flops(x: Sequence[int], weight: Sequence[int], bias: Any, *levels: Any, **_: Any) -> int:
    return 2 * math.prod(x[:-1]) * _shape_of(weight, *levels).kept


def _linear_backward_flops(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    return int(_linear_flops(x, weight, None, *rest[:3]) * sum(rest[-1]))


register_flop_formula(torch.ops.anytimeify.triangular_conv)(_conv_flops)
register_flop_formula(torch.ops.anytimeify.triangular_conv_backward)(_conv_backward_flops)
register_flop_formula(torch.ops.anytimeify.triangular_linear)(_linear_flops)
register_flop_formula(torch.ops.anytimeify.triangular_linear_backward)(_linear_backward_flops)
