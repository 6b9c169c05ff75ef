"""Modules that hold the weight of a triangular layer, for graphs that people read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify._torch import is_plain
from anytimeify.kernels import choice, masked, operators
from anytimeify.kernels.staircase import Staircase, staircase
from anytimeify.kernels.together import Weight, masked_weight

__all__ = ["TriangularConv", "TriangularLayer", "TriangularLinear", "to_mask"]


class TriangularLayer(nn.Module):
    """What the layers below have in common."""

    weight: Tensor
    bias: Tensor | None
    rows: list[int]
    columns: list[int]
    levels: int
    _masked_at: object = None  # what kind of input it last masked its weight for

    @property
    def shape(self) -> Staircase:
        """The elements that the weight has."""
        outputs, inputs = self.weight.shape[:2]
        return staircase(outputs, inputs, tuple(self.rows), tuple(self.columns), self.levels)

    def to_mask(self) -> Weight | None:
        """The weight, where the layer would mask it for an input like the last."""
        kind = choice.kind()
        if kind == "masked" or (kind == "measured" and self._masked_at is not None):
            return Weight(self, self.weight, self.shape)
        return None

    def _from_masked(self, x: Tensor) -> Tensor | None:
        """The weight that was masked for this step, where it fits the input."""
        made = masked_weight(self)
        if made is None or choice.kind() == "masked" or self._masked_at == _kind_of(x):
            return made
        return None

    def _note(self, x: Tensor, masked: bool) -> None:
        if is_plain(x):
            self.__dict__["_masked_at"] = _kind_of(x) if masked else None


def to_mask(root: nn.Module, paths: Iterable[Sequence[str]]) -> Iterator[Weight]:
    """The weights that the triangular layers at these paths would mask one by one; what has been put in the place of a
    layer has none."""
    for path in paths:
        module: nn.Module | None = root
        for name in path:
            module = None if module is None else module._modules.get(name)
        weight = module.to_mask() if isinstance(module, TriangularLayer) else None
        if weight is not None:
            yield weight


def _kind_of(x: Tensor) -> object:
    return x.shape, x.dtype


class TriangularLinear(TriangularLayer):
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
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        given = (x, self.weight, self.bias, self.rows, self.columns, self.levels)
        if torch.compiler.is_dynamo_compiling():
            return operators.triangular_linear(*given)
        if (made := self._from_masked(x)) is not None:
            return F.linear(x, made, self.bias)
        result, noted = operators.linear_layer(*given)
        self._note(x, noted)
        return result

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        bias = "" if self.bias is not None else ", bias=False"
        return f"{inputs}, {outputs}, {_levels_text(self)}{bias}"


class TriangularConv(TriangularLayer):
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
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        window = (self.stride, self.padding, self.dilation)
        given = (x, self.weight, self.bias, self.rows, self.columns, self.levels, *window)
        if torch.compiler.is_dynamo_compiling():
            return operators.triangular_conv(*given)
        if (made := self._from_masked(x)) is not None:
            return masked.dense_conv(x, made, self.bias, *window)
        result, noted = operators.conv_layer(*given)
        self._note(x, noted)
        return result

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        text = f"{inputs}, {outputs}, kernel_size={tuple(kernel)}, {_levels_text(self)}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if any(value != usual for value in getattr(self, name)):
                text += f", {name}={tuple(getattr(self, name))}"
        return text if self.bias is not None else f"{text}, bias=False"


def _levels_text(layer: TriangularLayer) -> str:
    shape = layer.shape
    return f"levels={layer.levels}, kept={shape.kept / max(1, shape.height * shape.width):.2f}"
