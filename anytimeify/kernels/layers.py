"""Modules that hold the weight of a triangular layer, for graphs that people read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anytimeify.kernels.operators import triangular_conv, triangular_linear
from anytimeify.kernels.staircase import staircase

__all__ = ["TriangularConv", "TriangularLinear"]


class TriangularLinear(nn.Module):
    """A linear layer whose rows of a level read the columns of that level and of those before it.

    `rows` and `columns` are the ends of the levels, as `triangular_linear` takes them. Entries that the layer does not
    have stay in `weight`, and are never read.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: Sequence[int],
        columns: Sequence[int],
        levels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.levels = list(rows), list(columns), levels
        kept = staircase(out_features, in_features, tuple(rows), tuple(columns), levels).kept
        self.share = kept / max(1, out_features * in_features)
        plain = nn.Linear(in_features, out_features, bias, device)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return triangular_linear(x, self.weight, self.bias, self.rows, self.columns, self.levels)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        bias = "" if self.bias is not None else ", bias=False"
        return f"{inputs}, {outputs}, levels={self.levels}, kept={self.share:.2f}{bias}"


class TriangularConv(nn.Module):
    """A convolution of one to three dimensions whose output channels of a level read the input channels of that level
    and of those before it. `rows` and `columns` are the ends of the levels, as `triangular_conv` takes them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        rows: Sequence[int],
        columns: Sequence[int],
        levels: int,
        stride: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        rank = len(kernel_size)
        self.rows, self.columns, self.levels = list(rows), list(columns), levels
        self.stride, self.padding = list(stride or [1] * rank), list(padding or [0] * rank)
        self.dilation = list(dilation or [1] * rank)
        kept = staircase(out_channels, in_channels, tuple(rows), tuple(columns), levels).kept
        self.share = kept / max(1, out_channels * in_channels)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        plain = kind(in_channels, out_channels, tuple(kernel_size), bias=bias, device=device)  # type: ignore[arg-type]
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        levels = (self.rows, self.columns, self.levels)
        return triangular_conv(x, self.weight, self.bias, *levels, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        text = f"{inputs}, {outputs}, kernel_size={tuple(kernel)}, levels={self.levels}, kept={self.share:.2f}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if any(value != usual for value in getattr(self, name)):
                text += f", {name}={tuple(getattr(self, name))}"
        return text if self.bias is not None else f"{text}, bias=False"
