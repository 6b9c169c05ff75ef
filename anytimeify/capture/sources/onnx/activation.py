"""Activations, softmax and other operators along one axis that keep it, and dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row

__all__ = ["ROWS"]


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def _selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0)


def _shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if slope.dim() == x.dim() - 1 and slope.shape[0] == slope.numel() == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _flattened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Before version 13, all axes from the given one on are one axis."""

    def flat(x: Tensor, *, axis: int = 1) -> Tensor:
        start = axis % x.dim()
        if start == x.dim() - 1:
            return function(x, axis=start)
        return function(x.flatten(start), axis=-1).reshape(x.shape)

    return flat


def _hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


def _cumsum(x: Tensor, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis.reshape(-1)[0])
    source = x.flip(dim) if reverse else x
    total = source.cumsum(dim, dtype=x.dtype)
    total = total - source if exclusive else total
    return total.flip(dim) if reverse else total


def _dropout(
    x: Tensor, probability: Any = None, mode: Any = None, *, outputs: int, training: bool, seed: int = 0
) -> Any:
    """In eval mode nothing; in train mode it drops, as it did before the file was written."""
    if mode is not None and bool(np.any(mode)):
        raise NotReadError("it drops in every mode (its training_mode is true)")
    rate = 0.5 if probability is None else float(probability.reshape(-1)[0])
    result = F.dropout(x, rate, training)
    return result if outputs == 1 else (result, torch.ones_like(x, dtype=torch.bool))


def _dropout_with_ratio(x: Tensor, *, outputs: int, training: bool, ratio: float = 0.5) -> Any:
    return _dropout(x, np.array(ratio), outputs=outputs, training=training)


ROWS = (
    # activations
    Row("Relu", 6, torch.relu),
    Row("LeakyRelu", 6, _leaky_relu),
    Row("PRelu", 7, _prelu),
    Row("ThresholdedRelu", 10, _thresholded_relu),
    Row("Shrink", 9, _shrink),
    Row("Elu", 6, _elu),
    Row("Celu", 12, _celu),
    Row("Selu", 6, _selu),
    Row("Gelu", 20, _gelu),
    Row("Mish", 18, F.mish),
    Row("Sigmoid", 6, torch.sigmoid),
    Row("HardSigmoid", 6, _hard_sigmoid),
    Row("HardSwish", 14, F.hardswish),
    Row("Tanh", 6, torch.tanh),
    Row("Softplus", 1, F.softplus),
    Row("Softsign", 1, F.softsign),
    # along an axis
    Row("Softmax", 1, _flattened(_softmax)),
    Row("Softmax", 13, _softmax),
    Row("LogSoftmax", 1, _flattened(_log_softmax)),
    Row("LogSoftmax", 13, _log_softmax),
    Row("Hardmax", 1, _flattened(_hardmax)),
    Row("Hardmax", 13, _hardmax),
    Row("CumSum", 11, _cumsum, numbers=(1,)),
    # of training
    Row("Dropout", 7, _dropout_with_ratio),
    Row("Dropout", 12, _dropout, numbers=(1, 2)),
)
