"""`anytimeify::triangular_conv` and `anytimeify::triangular_linear`: triangular layers.

They are dense layers of torch with masked weights (`masked`), which is all that compilers and exporters see; or where
that is worth it (`choice.pays`), `anytimeify::triangular_conv_in_blocks` and `anytimeify::triangular_linear_in_blocks`,
which multiply only what there is, with all that torch wants to know of an operator.

`weight` has a row per output and a column per input, and every level has some of each: a row reads the columns of its
level and of those before. The other elements of the weight count as zero, whatever they hold, and their gradient is
zero. `rows` and `columns` are where the levels end: `[16, 32, 64]` with `levels=3` says that the first level has 16
rows, the second 16 more. Behind a concatenation every part has rows of every level; the ends of all its parts follow
each other: `[4, 8, 12, 14, 16, 18]` with `levels=3` are parts of 12 and 6 rows.

In blocks what is no number does not get out of those elements either; a mask multiplies them with zero.

The memory format of the results follows that of the inputs, as for dense layers. Derivatives of every order exist, for
the gradients of a triangular layer are triangular layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from anytimeify._torch import OpOverload, below_autograd
from anytimeify.kernels import masked, run
from anytimeify.kernels.choice import Case, Layer, pays
from anytimeify.kernels.products import Gradients, Window
from anytimeify.kernels.staircase import Staircase, staircase

__all__ = ["conv_layer", "linear_layer", "triangular_conv", "triangular_linear"]

# By hand, and not by `torch.library.custom_op`, whose layers of Python take longer than a small layer's work.
_LIBRARY = torch.library.Library("anytimeify", "FRAGMENT")
_LEVELS = "int[] rows, int[] columns, int levels"
_WINDOW = "int[] stride, int[] padding, int[] dilation"
for _signature in (
    f"triangular_conv(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}, {_WINDOW}) -> Tensor",
    f"triangular_conv_in_blocks(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}, {_WINDOW}) -> Tensor",
    f"triangular_conv_in_blocks_backward(Tensor grad, Tensor input, Tensor weight, {_LEVELS}, {_WINDOW}, bool[] wanted)"
    " -> (Tensor, Tensor)",
    f"triangular_linear(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}) -> Tensor",
    f"triangular_linear_in_blocks(Tensor input, Tensor weight, Tensor? bias, {_LEVELS}) -> Tensor",
    f"triangular_linear_in_blocks_backward(Tensor grad, Tensor input, Tensor weight, {_LEVELS}, bool[] wanted)"
    " -> (Tensor, Tensor)",
):
    _LIBRARY.define(_signature, tags=(torch.Tag.pt2_compliant_tag,))
_OPERATORS = torch.ops.anytimeify


@dataclass(frozen=True)
class _Kind:
    """An operator and the one that gives its gradients (empty tensors where not wanted)."""

    operator: OpOverload
    backward: OpOverload
    channels: int  # the dimension of the outputs


_CONV = _Kind(
    torch.ops.anytimeify.triangular_conv_in_blocks.default,
    torch.ops.anytimeify.triangular_conv_in_blocks_backward.default,
    channels=1,
)
_LINEAR = _Kind(
    torch.ops.anytimeify.triangular_linear_in_blocks.default,
    torch.ops.anytimeify.triangular_linear_in_blocks_backward.default,
    channels=-1,
)


def triangular_conv(
    input: Tensor,
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
    if torch.compiler.is_dynamo_compiling():  # which need not follow what levels there are
        traced: Tensor = _OPERATORS.triangular_conv(
            input, weight, bias, rows, columns, levels, stride, padding, dilation
        )
        return traced
    return conv_layer(input, weight, bias, rows, columns, levels, stride, padding, dilation)[0]


def triangular_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Sequence[int],
    columns: Sequence[int],
    levels: int,
) -> Tensor:
    """The product of `input` (..., columns) with the triangular `weight` (rows, columns)."""
    if torch.compiler.is_dynamo_compiling():
        traced: Tensor = _OPERATORS.triangular_linear(input, weight, bias, rows, columns, levels)
        return traced
    return linear_layer(input, weight, bias, rows, columns, levels)[0]


# -- masked, or in blocks ----------------------------------------------------------------------------------------------


def conv_layer(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, bool]:
    """As `triangular_conv`, and whether with a masked weight."""
    shape, window = _shape(weight, *rest[:3]), _window(*rest[3:])
    plain = partial(masked.conv, shape=shape, window=window)
    return _either(_CONV, plain, x, weight, bias, rest, lambda: run.conv_case(x, weight, shape, window))


def linear_layer(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, bool]:
    """As `triangular_linear`, and whether with a masked weight."""
    shape = _shape(weight, *rest)
    plain = partial(masked.linear, shape=shape)
    return _either(_LINEAR, plain, x, weight, bias, rest, lambda: run.linear_case(x, weight, shape))


def _either(
    kind: _Kind, plain: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, rest: Any, case: Callable[[], Case]
) -> tuple[Tensor, bool]:
    def in_blocks(*tensors: Tensor | None) -> Tensor:
        result: Tensor = kind.operator(*tensors, *rest)
        return result

    tensors = (x, weight, bias)
    if pays(case, plain, in_blocks, tensors):
        return in_blocks(*tensors), False
    return plain(*tensors), True


# -- what they compute -------------------------------------------------------------------------------------------------


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return run.conv(x, weight, bias, _shape(weight, *rest[:3]), _window(*rest[3:]))


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *levels, stride, padding, dilation, wanted = rest
    window = _window(stride, padding, dilation)
    return _pair(grad, run.conv_gradients(grad, x, weight, _shape(weight, *levels), window, (wanted[0], wanted[1])))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *levels: Any) -> Tensor:
    return run.linear(x, weight, bias, _shape(weight, *levels))


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *levels, wanted = rest
    return _pair(grad, run.linear_gradients(grad, x, weight, _shape(weight, *levels), (wanted[0], wanted[1])))


def _pair(grad: Tensor, found: Gradients) -> tuple[Tensor, Tensor]:
    dx, dw = found
    return grad.new_empty(0) if dx is None else dx, grad.new_empty(0) if dw is None else dw


def _shape(weight: Tensor, rows: Sequence[int], columns: Sequence[int], levels: int) -> Staircase:
    return _shape_of(weight.shape, rows, columns, levels)


def _shape_of(weight: Sequence[int], rows: Sequence[int], columns: Sequence[int], levels: int) -> Staircase:
    return staircase(int(weight[0]), int(weight[1]), tuple(map(int, rows)), tuple(map(int, columns)), int(levels))


def _window(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Window:
    return Window(tuple(map(int, stride)), tuple(map(int, padding)), tuple(map(int, dilation)))


# -- shapes, for compilation and export --------------------------------------------------------------------------------


def _conv_fake(x: Tensor, weight: Tensor, bias: Any, *rest: Any) -> Tensor:
    *levels, stride, padding, dilation = rest
    _shape(weight, *levels)
    size = _window(stride, padding, dilation).size(x.shape[2:], weight.shape[2:])
    result = x.new_empty(x.shape[0], weight.shape[0], *size)
    return result.contiguous(memory_format=run.result_layout(x, weight))


def _conv_backward_fake(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    into = run.result_layout(x, weight)
    dx = x.new_empty(x.shape).contiguous(memory_format=into) if wanted[0] else grad.new_empty(0)
    return dx, torch.empty_like(weight) if wanted[1] else grad.new_empty(0)


def _linear_fake(x: Tensor, weight: Tensor, bias: Any, *levels: Any) -> Tensor:
    _shape(weight, *levels)
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _linear_backward_fake(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    dx = x.new_empty(x.shape) if wanted[0] else grad.new_empty(0)
    return dx, torch.empty_like(weight) if wanted[1] else grad.new_empty(0)


# -- derivatives -------------------------------------------------------------------------------------------------------


class _Layer(torch.autograd.Function):
    """Either operator, with its first derivatives."""

    @staticmethod
    def forward(ctx: Any, kind: _Kind, *inputs: Any) -> Any:
        x, weight, _, *ctx.rest = inputs
        ctx.kind = kind
        ctx.save_for_backward(x, weight)
        with below_autograd():
            return kind.operator(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:3])
        dx = dw = bias = None
        if any(wanted):
            with nullcontext() if torch.is_grad_enabled() else below_autograd():
                dx, dw = ctx.kind.backward(grad, x, weight, *ctx.rest, wanted)
        if ctx.needs_input_grad[3]:
            others = [dim for dim in range(grad.dim()) if dim != ctx.kind.channels % grad.dim()]
            bias = grad.sum(others) if others else grad
        return (None, dx if wanted[0] else None, dw if wanted[1] else None, bias, *[None] * len(ctx.rest))


class _Backward(torch.autograd.Function):
    """The gradients of either operator, with their derivatives: dx is linear in (grad, weight) and dw in (grad, x), and
    each is the layer's own derivative in another argument."""

    @staticmethod
    def forward(ctx: Any, kind: _Kind, *inputs: Any) -> Any:
        grad, x, weight, *ctx.rest, ctx.wanted = inputs
        ctx.kind = kind
        ctx.save_for_backward(grad, x, weight)
        with below_autograd():
            return kind.backward(*inputs)

    @staticmethod
    def backward(ctx: Any, to_dx: Tensor | None, to_dw: Tensor | None) -> Any:
        grad, x, weight = ctx.saved_tensors
        kind, needs, rest = ctx.kind, ctx.needs_input_grad, ctx.rest
        to_dx, to_dw = (to_dx if ctx.wanted[0] else None), (to_dw if ctx.wanted[1] else None)
        to_grad = to_x = to_weight = None
        if needs[1]:
            terms = [kind.operator(to_dx, weight, None, *rest)] if to_dx is not None else []
            terms += [kind.operator(x, to_dw, None, *rest)] if to_dw is not None else []
            to_grad = sum(terms[1:], terms[0]) if terms else None
        if needs[2] and to_dw is not None:
            to_x = kind.backward(grad, x, to_dw, *rest, [True, False])[0]
        if needs[3] and to_dx is not None:
            to_weight = kind.backward(grad, to_dx, weight, *rest, [False, True])[1]
        return (None, to_grad, to_x, to_weight, *[None] * len(rest), None)


# -- registration ------------------------------------------------------------------------------------------------------


def _register(kind: _Kind, operator: OpOverload, function: Any, fake: Any, differentiable: Any) -> None:
    name = str(operator).removesuffix(".default").replace(".", "::")

    def differentiated(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in inputs):
            return differentiable.apply(kind, *inputs)
        with below_autograd():
            return operator(*inputs)

    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiated, "Autograd")
    torch.library.register_fake(name, fake, lib=_LIBRARY)


def _autocast(operator: OpOverload, device: str, key: str) -> None:
    """As convolutions and linear layers: in the short type."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device))

    def lowered(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return operator(cast(x), cast(weight), cast(bias), *rest)

    _LIBRARY.impl(str(operator).removesuffix(".default").replace(".", "::"), lowered, key)


_register(_CONV, _CONV.operator, _conv, _conv_fake, _Layer)
_register(_CONV, _CONV.backward, _conv_backward, _conv_backward_fake, _Backward)
_register(_LINEAR, _LINEAR.operator, _linear, _linear_fake, _Layer)
_register(_LINEAR, _LINEAR.backward, _linear_backward, _linear_backward_fake, _Backward)
_LIBRARY.impl("triangular_conv", lambda *inputs: conv_layer(*inputs)[0], "CompositeImplicitAutograd")
_LIBRARY.impl("triangular_linear", lambda *inputs: linear_layer(*inputs)[0], "CompositeImplicitAutograd")
for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _autocast(_CONV.operator, _device, _key)
    _autocast(_LINEAR.operator, _device, _key)


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


register_flop_formula(_OPERATORS.triangular_conv_in_blocks)(_conv_flops)
register_flop_formula(_OPERATORS.triangular_conv_in_blocks_backward)(_conv_backward_flops)
register_flop_formula(_OPERATORS.triangular_linear_in_blocks)(_linear_flops)
register_flop_formula(_OPERATORS.triangular_linear_in_blocks_backward)(_linear_backward_flops)
