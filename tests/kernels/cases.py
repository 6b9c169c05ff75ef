"""Triangular layers of many geometries, and what they mean: dense layers with masked weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from anytimeify import kernels

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
FORMS = ("masked", "prefixes", "blocks", "rule", "measured")


@dataclass(frozen=True)
class Case:
    """One layer and the sizes of what it reads."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    levels: int
    width: int  # columns of the weight
    size: tuple[int, ...] = ()  # spatial size of the input; none: a linear layer
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    bias: bool = True
    batch: int = 2

    @property
    def ends(self) -> tuple[list[int], list[int], int]:
        return list(self.rows), list(self.columns), self.levels

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)

    def tensors(self, dtype: torch.dtype = torch.float64, *, grad: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias."""
        height = self.rows[-1]
        channels = (self.batch, self.width, *self.size) if self.size else (self.batch, 3, self.width)
        x = torch.randn(channels, dtype=dtype, requires_grad=grad)
        weight = torch.randn(height, self.width, *self.kernel, dtype=dtype, requires_grad=grad)
        return x, weight, torch.randn(height, dtype=dtype, requires_grad=grad) if self.bias else None

    def mask(self) -> Tensor:
        """By the definition: a row reads the columns of its level and of those before."""
        level = [torch.full((n,), self.levels) for n in (self.rows[-1], self.width)]
        for ends, levels in zip((self.rows, self.columns), level, strict=True):
            for place in reversed(range(len(ends))):
                levels[ends[place - 1] if place else 0 : ends[place]] = place % self.levels
        mask = (level[1][None] <= level[0][:, None]) & (level[1] < self.levels)[None]
        return mask.view(*mask.shape, *[1] * len(self.kernel))

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer means."""
        weight = torch.where(self.mask(), weight, 0.0)
        if not self.size:
            return F.linear(x, weight, bias)
        layer: Any = (F.conv1d, F.conv2d, F.conv3d)[len(self.size) - 1]
        result: Tensor = layer(x, weight, bias, *self.window)
        return result

    def fast(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operator."""
        more = (*self.ends, *self.window) if self.size else self.ends
        layer: Any = kernels.triangular_conv if self.size else kernels.triangular_linear
        result: Tensor = layer(x, weight, bias, *more)
        return result


def ends(draw: st.DrawFn, levels: int, parts: int, *, least: int = 0) -> tuple[int, ...]:
    sizes = draw(st.lists(st.integers(0, 3), min_size=levels * parts, max_size=levels * parts))
    sizes[-1] += least if not sum(sizes) else 0
    return tuple(sum(sizes[: count + 1]) for count in range(len(sizes)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layers of any rank, levels without rows or columns and scattered ones among them."""
    levels, rank = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    rows = ends(draw, levels, draw(st.integers(1, 2)), least=1)
    columns = ends(draw, levels, draw(st.integers(1, 2)))
    width = max(1, columns[-1] + draw(st.integers(0, 1)))

    def numbers(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel = numbers(1, 2) if draw(st.booleans()) else (1,) * rank
    padding = numbers(0, 1) if draw(st.booleans()) else (0,) * rank
    size, stride, dilation = numbers(3, 5), numbers(1, 2), numbers(1, 2)
    return Case(
        rows, columns, levels, width, size, kernel, stride, padding, dilation,
        bias=draw(st.booleans()), batch=draw(st.integers(1, 2)),
    )  # fmt: skip
