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
        plain = nn.Linear(in_features, out_features, bias, device)
        self.weight = plain.weight
        self.bias: nn.Parameter | None = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = triangular_linear(x, self.weight, self.bias, self.rows, self.columns, self.levels)
        return result

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        bias = "" if self.bias is not None else ", bias=False"
        return f"{inputs}, {outputs}, {_levels_text(self)}{bias}"


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
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        plain = kind(in_channels, out_channels, tuple(kernel_size), bias=bias, device=device)  # type: ignore[arg-type]
        self.weight = plain.weight
        self.bias: nn.Parameter | None = plain.bias  # type: ignore[assignment]  # torch annotates it as a plain tensor

    def forward(self, x: Tensor) -> Tensor:
        levels = (self.rows, self.columns, self.levels)
        window = (self.stride, self.padding, self.dilation)
        result: Tensor = triangular_conv(x, self.weight, self.bias, *levels, *window)
        return result

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        text = f"{inputs}, {outputs}, kernel_size={tuple(kernel)}, {_levels_text(self)}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if any(value != usual for value in getattr(self, name)):
                text += f", {name}={tuple(getattr(self, name))}"
        return text if self.bias is not None else f"{text}, bias=False"


def _levels_text(layer: TriangularLinear | TriangularConv) -> str:
    outputs, inputs = layer.weight.shape[:2]
    kept = staircase(outputs, inputs, tuple(layer.rows), tuple(layer.columns), layer.levels).kept
    return f"levels={layer.levels}, kept={kept / max(1, outputs * inputs):.2f}"
