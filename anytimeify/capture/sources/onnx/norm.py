"""Norms. They are in the form in which they train: a batch norm of ONNX is one that has running statistics."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.table import NotReadError, Row

__all__ = ["ROWS"]


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    outputs: int,
    training: bool,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """ONNX keeps the share `momentum` of the statistics, torch gives it to the batch."""
    if outputs > 1 or training_mode:
        raise NotReadError("it is a batch norm of a training graph; export the network in eval mode")
    return F.batch_norm(x, mean, variance, scale, bias, training, 1 - momentum, epsilon)


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: int,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:
    """With its mean and the inverse of its deviation, where they are read."""
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        result = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        result = F.layer_norm(x, shape, eps=epsilon) * scale
        result = result if bias is None else result + bias
    if outputs == 1:
        return result
    axes = list(range(-len(shape), 0))
    return result, x.mean(axes, True), (x.var(axes, correction=0, keepdim=True) + epsilon).rsqrt()


def _group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """In version 18, which is deprecated, a scale and a bias are of a group."""
    if scale.shape[0] != x.shape[1]:
        each = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def _local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise NotReadError("its size is even")
    return F.local_response_norm(x, size, alpha, beta, bias)


def _lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, float(p), axis, eps=0)


def _mean_variance(x: Tensor, *, axes: Any = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(list(axes), True)
    return centred / (centred.square().mean(list(axes), True).sqrt() + 1e-9)


ROWS = (
    Row("BatchNormalization", 9, _batch_norm),
    Row("InstanceNormalization", 6, _instance_norm),
    Row("LayerNormalization", 17, _layer_norm),
    Row("GroupNormalization", 18, _group_norm),
    Row("LRN", 1, _local_response_norm),
    Row("LpNormalization", 1, _lp_normalization),
    Row("MeanVarianceNormalization", 9, _mean_variance),
)
