"""Triangular layers on real tensors: the candidates of every case, and what each of them calls."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from anytimeify.kernels import products
from anytimeify.kernels.choice import WORTH, Case, Form, choose
from anytimeify.kernels.products import Gradients, Wanted, Window
from anytimeify.kernels.staircase import Staircase

__all__ = [
    "conv",
    "conv_case",
    "conv_gradients",
    "layout",
    "linear",
    "linear_case",
    "linear_gradients",
    "result_layout",
]

_MASKED = Form("masked")
_FEWEST_ROWS = 32  # of a block by the rule of thumb: two registers of the widest processors


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of images; what has no positions counts as contiguous."""
    wide = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if wide is None or x.is_contiguous() or not x.is_contiguous(memory_format=wide):
        return torch.contiguous_format
    return wide


def result_layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """That of a convolution's result: channels-last if the input or the weight is, as torch has it on CPU."""
    found = layout(x)
    return found if found is not torch.contiguous_format else layout(weight)


# -- convolutions ------------------------------------------------------------------------------------------------------


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, window: Window) -> Tensor:
    """The result of a triangular convolution, in the memory format of `result_layout`."""
    wanted = result_layout(x, weight)
    if not x.numel() or not shape.levels:
        return products.convolution(x, weight, bias, shape, window, 0).contiguous(memory_format=wanted)

    def run(one: Form) -> Tensor:
        if one.route in ("matrix", "triton"):
            result = _pointwise_conv(x, weight, bias, shape, window, one)
        else:
            given = x.contiguous(memory_format=torch.channels_last) if one.channels_last else x
            result = products.convolution(given, weight, bias, shape, window, one.blocks)
        return result.contiguous(memory_format=wanted)

    return choose(conv_case(x, weight, shape, window), run)


def conv_case(x: Tensor, weight: Tensor, shape: Staircase, window: Window) -> Case:
    """The forward pass of a triangular convolution."""
    positions = len(x) * math.prod(window.size(x.shape[2:], weight.shape[2:]))
    routes = _routes(shape, _pointwise(weight, window), _has_kernels(x))
    more = (window, result_layout(x, weight), x.shape[2:])
    return _case("conv", x, weight, shape, positions, 1, routes, more)


def conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, window: Window, wanted: Wanted
) -> Gradients:
    """Gradients of a triangular convolution: the input's in the format of the result, the weight's in its own."""
    into = result_layout(x, weight)
    wide = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)

    def run(one: Form) -> Gradients:
        if one.route in ("matrix", "triton"):
            found = _pointwise_gradients(grad, x, weight, shape, window, one, wanted)
        else:
            given = (grad, x)
            if one.channels_last:
                given = (grad.contiguous(memory_format=wide), x.contiguous(memory_format=wide))
            found = products.convolution_gradients(*given, weight, shape, window, one.blocks, wanted)
        dx = None if found.x is None else found.x.contiguous(memory_format=into)
        return Gradients(dx, None if found.weight is None else like(found.weight, weight))

    if not x.numel() or not grad.numel() or not shape.levels:
        return run(_MASKED)
    positions = grad.numel() // grad.shape[1]
    narrow = x.device.type == "cpu" and x.dim() == 4 and into is torch.contiguous_format
    routes = _routes(shape, _pointwise(weight, window), _has_kernels(x), narrow)
    more = (window, into, x.shape[2:], wanted)
    return choose(_case("conv backward", x, weight, shape, positions, sum(wanted), routes, more), run)


def _pointwise(weight: Tensor, window: Window) -> bool:
    return math.prod(weight.shape[2:]) == 1 and not any(window.padding)


def _pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, window: Window, one: Form
) -> Tensor:
    given = _strided(x, window)
    matrix, flat = _as_matrix(given), weight.flatten(1)
    y = _product(matrix, flat, bias, shape, one)
    size = given.shape[2:]
    result: Tensor = y.unflatten(0, (len(x), *size)).movedim(-1, 1) if y.dim() == 2 else y.unflatten(2, size)
    return result


def _pointwise_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, window: Window, one: Form, wanted: Wanted
) -> Gradients:
    given = _strided(x, window)
    matrix = _as_matrix(given)
    rest = grad.movedim(1, -1).reshape(-1, grad.shape[1]) if matrix.dim() == 2 else grad.flatten(2)
    found = _gradients(rest, matrix, weight.flatten(1), shape, one, wanted)
    dw = None if found.weight is None else found.weight.view(weight.shape)
    if found.x is None:
        return Gradients(None, dw)
    size = given.shape[2:]
    dx = found.x.unflatten(0, (len(x), *size)).movedim(-1, 1) if matrix.dim() == 2 else found.x.unflatten(2, size)
    if given is not x:  # positions in between have no gradient
        whole = torch.zeros_like(x)
        _strided(whole, window).copy_(dx)
        dx = whole
    return Gradients(dx, dw)


def _strided(x: Tensor, window: Window) -> Tensor:
    """The positions that a 1x1 convolution looks at."""
    for dim, stride in enumerate(window.stride):
        if stride > 1:
            x = x[(slice(None),) * (2 + dim) + (slice(None, None, stride),)]
    return x


def _as_matrix(x: Tensor) -> Tensor:
    """(positions, channels) where channels lie innermost, else (samples, channels, positions)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]) if x.stride(1) == 1 else x.flatten(2)


# -- linear layers -----------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase) -> Tensor:
    """The result of a triangular linear layer of (..., features), contiguous."""

    def run(one: Form) -> Tensor:
        if one.route == "masked":
            return torch.nn.functional.linear(x, products.masked(weight, shape), bias).contiguous()
        return _product(x.reshape(-1, x.shape[-1]), weight, bias, shape, one).view(*x.shape[:-1], len(weight))

    if not x.numel() or not shape.levels:
        return run(_MASKED)
    return choose(linear_case(x, weight, shape), run)


def linear_case(x: Tensor, weight: Tensor, shape: Staircase) -> Case:
    """The forward pass of a triangular linear layer."""
    routes = _routes(shape, True, _has_kernels(x))
    return _case("linear", x, weight, shape, x.numel() // max(1, x.shape[-1]), 1, routes, ())


def linear_gradients(grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, wanted: Wanted) -> Gradients:
    """Gradients of a triangular linear layer, contiguous."""
    rest, matrix = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])

    def run(one: Form) -> Gradients:
        if one.route == "masked":
            dx = rest @ products.masked(weight, shape) if wanted[0] else None
            dw = products.clear(rest.t() @ matrix, shape.holes) if wanted[1] else None
            found = Gradients(dx, dw)
        else:
            found = _gradients(rest, matrix, weight, shape, one, wanted)
        dx = None if found.x is None else found.x.view(x.shape)
        return Gradients(dx, None if found.weight is None else like(found.weight, weight))

    if not x.numel() or not grad.numel() or not shape.levels:
        return run(_MASKED)
    routes = _routes(shape, True, _has_kernels(x))
    return choose(_case("linear backward", x, weight, shape, len(rest), sum(wanted), routes, wanted), run)


# -- what there is to choose from --------------------------------------------------------------------------------------


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Staircase, one: Form) -> Tensor:
    if one.route == "triton":
        return _triton().product(x, weight, bias, shape)  # type: ignore[no-any-return]  # loaded by name
    return products.product(x, weight, bias, shape, one.blocks)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, shape: Staircase, one: Form, wanted: Wanted) -> Gradients:
    if one.route == "triton":
        return _triton().product_gradients(grad, x, weight, shape, wanted)  # type: ignore[no-any-return]
    return products.product_gradients(grad, x, weight, shape, one.blocks, wanted)


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and _triton() is not None and x.dtype in _triton().DTYPES


@cache
def _triton() -> Any:
    """The module of Triton kernels; None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("anytimeify.kernels.triton_products")


@cache
def _routes(shape: Staircase, pointwise: bool, kernels: bool, narrow: bool = False) -> tuple[Form, ...]:
    """The forms of a layer. `kernels`: those of Triton run. `narrow`: the input is not channels-last, and parts of it
    may be copied to be."""
    counts = sorted({count for count in (2, 3, 4, 8, shape.levels) if 1 < count <= shape.levels})
    if pointwise:
        products = [Form("matrix", count) for count in (1, *counts) if count != 3]
        return (_MASKED, *products, *([Form("triton")] if kernels else []))
    blocks = [Form("convolution", count) for count in counts]
    return (_MASKED, *blocks, *(one._replace(channels_last=True) for one in blocks if narrow))


@cache
def _thumb(shape: Staircase, routes: tuple[Form, ...]) -> Form:
    """The rule of thumb: large layers in as many blocks as have enough rows each, products of matrices more than
    convolutions."""
    smaller = min(shape.height, shape.width)
    fewest = {"convolution": _FEWEST_ROWS, "matrix": 2 * _FEWEST_ROWS}
    fitting = [one for one in routes if one.blocks * fewest.get(one.route, 0) <= smaller]
    if smaller < 4 * _FEWEST_ROWS:
        fitting = [one for one in fitting if one.blocks <= 1]
    return max(fitting, key=lambda one: (one.blocks, not one.channels_last))


def _case(
    name: str, x: Tensor, weight: Tensor, shape: Staircase, positions: int, products: int, routes: tuple[Form, ...],
    more: Hashable,
) -> Case:  # fmt: skip
    """Of the number of positions, timings are told apart by the power of two, so that batches of all sizes do not all
    measure."""
    work = positions * shape.kept * math.prod(weight.shape[2:]) * products

    def key() -> Hashable:
        threads = torch.get_num_threads() if x.device.type == "cpu" else 0
        kind = (x.device, x.dtype, tuple(weight.shape), layout(x), threads)
        return (name, kind, shape, positions.bit_length(), more)

    return Case(shape.levels, work, x.device, routes, _thumb(shape, routes) if work >= WORTH else _MASKED, key)


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """With the strides of `model`."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model).copy_(tensor)
