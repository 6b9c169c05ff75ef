"""Which positions of which tensor dimension a network of smaller width keeps: the bookkeeping of generated backbones.

A generated backbone knows how every dimension of its tensors is composed, so a thin copy of it follows without any
graph: a `Dim` lists the positions that are kept, and a `Ledger` hands out dimensions while a module is built and
remembers which dimensions its tensors have. Nothing here looks at the compiler, which is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from anytimeify.testing.modules import ChannelsLast, ScaledBias

__all__ = ["Dim", "Ledger", "concatenation", "product", "whole"]


@dataclass(frozen=True)
class Dim:
    """A dimension of `full` entries of which the positions `kept` remain."""

    full: int
    kept: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.kept)


def whole(size: int) -> Dim:
    """A dimension that keeps everything: inputs, classes, positions, kernels, the inside of a group or head."""
    return Dim(size, tuple(range(size)))


def product(*dims: Dim) -> Dim:
    """A compound dimension, outermost first."""
    full = 1
    kept: tuple[int, ...] = (0,)
    for dim in dims:
        kept = tuple(outer * dim.full + inner for outer in kept for inner in dim.kept)
        full *= dim.full
    return Dim(full, kept)


def concatenation(*dims: Dim) -> Dim:
    """Dimensions one after the other; each keeps its own positions."""
    full, kept = 0, []
    for dim in dims:
        kept += [full + position for position in dim.kept]
        full += dim.full
    return Dim(full, tuple(kept))


def up_to(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


@dataclass(frozen=True)
class Entry:
    """The dimensions of one parameter or buffer of a module."""

    module: nn.Module
    tensor: str
    dims: tuple[Dim, ...]


class Ledger:
    """Builds layers at one width and remembers what the dimensions of their tensors are.

    `ambiguous` tells that the width arithmetic left a choice somewhere (an axis that is read with two different group
    widths); such a network has no single thin version to compare with.
    """

    def __init__(self, width: float = 1.0, multiple_of: int = 1) -> None:
        self.width = width
        self.multiple_of = multiple_of
        self.ambiguous = False
        self.entries: list[Entry] = []

    def free(self, size: int, quantum: int = 1, also: tuple[int, ...] = ()) -> Dim:
        """A new axis group of `size` channels kept in whole multiples of `quantum`.

        `also`: the group is read elsewhere as a product with that many entries per channel, which leaves the rounding
        open.
        """
        kept = self._kept(size, quantum)
        wholes = math.lcm(self.multiple_of, quantum)
        if min(size, up_to(max(1, round(size * self.width)), wholes)) != kept:
            self.ambiguous = True
        for factor in also:
            if self._kept(size * factor, quantum * factor) != kept * factor:
                self.ambiguous = True
        return Dim(size, tuple(range(kept)))

    def _kept(self, size: int, quantum: int) -> int:
        target = max(1, round(size * self.width))
        return min(size, up_to(up_to(target, self.multiple_of), quantum))

    def compound(self, units: int, unit: int) -> Dim:
        """A new axis group that keeps whole heads or groups: `units` of `unit` channels each.

        A single unit is no compound to anybody who reads the graph: its channels may be narrowed or kept.
        """
        self.ambiguous |= units == 1 and unit > 1
        return self.free(units * unit, unit)

    def record(self, module: nn.Module, **dims: tuple[Dim, ...]) -> None:
        """Note the dimensions of a module's own tensors; those the module does not have are left out."""
        for name, shape in dims.items():
            if isinstance(getattr(module, name, None), Tensor):
                self.entries.append(Entry(module, name, shape))

    def named(self, model: nn.Module) -> dict[str, tuple[Dim, ...]]:
        """The dimensions by dotted tensor name. Tensors without an entry are kept whole."""
        paths = {id(module): path for path, module in model.named_modules()}
        found: dict[str, tuple[Dim, ...]] = {}
        for entry in self.entries:
            path = paths[id(entry.module)]
            found[f"{path}.{entry.tensor}" if path else entry.tensor] = entry.dims
        return found

    def conv(
        self,
        source: Dim,
        target: Dim,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        group_width: int | None = None,
        bias: bool = False,
        rank: int = 2,
    ) -> nn.Module:
        """A convolution that keeps the spatial size (stride aside); grouped when a `group_width` is given."""
        layer = {1: nn.Conv1d, 2: nn.Conv2d}[rank](
            source.size,
            target.size,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=1 if group_width is None else source.size // group_width,
            bias=bias,
        )
        inside = source if group_width is None else whole(group_width)
        self.record(layer, weight=(target, inside, *[whole(kernel)] * rank), bias=(target,))
        return layer

    def linear(self, source: Dim, target: Dim, *, bias: bool = True) -> nn.Module:
        layer = nn.Linear(source.size, target.size, bias=bias)
        self.record(layer, weight=(target, source), bias=(target,))
        return layer

    def scale(self, dim: Dim) -> nn.Module:
        """A learnt scale and offset along the last dimension."""
        layer = ScaledBias(dim.size)
        self.record(layer, weight=(dim,), bias=(dim,))
        return layer

    def image_norm(self, kind: str, dim: Dim, group_width: int = 1) -> nn.Module:
        """A norm over the channels of an image `(n, c, h, w)`."""
        make: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "batch": lambda: nn.BatchNorm2d(dim.size),
            "group": lambda: nn.GroupNorm(dim.size // group_width, dim.size),
            "instance": lambda: nn.InstanceNorm2d(dim.size, affine=True),
            "layer": lambda: nn.LayerNorm(dim.size),
            "rms": lambda: nn.RMSNorm(dim.size, eps=1e-5),
            "one group": lambda: nn.GroupNorm(1, dim.size),
        }
        norm = make[kind]()
        self.record(norm, weight=(dim,), bias=(dim,), running_mean=(dim,), running_var=(dim,))
        return ChannelsLast(norm) if kind in ("layer", "rms") else norm

    def token_norm(self, kind: str, dim: Dim) -> nn.Module:
        """A norm over the last dimension of tokens `(n, t, c)`."""
        if kind not in ("layer", "rms"):
            return nn.Identity()
        norm = nn.LayerNorm(dim.size) if kind == "layer" else nn.RMSNorm(dim.size, eps=1e-5)
        self.record(norm, weight=(dim,), bias=(dim,))
        return norm

    def activation(self, kind: str, dim: Dim) -> nn.Module:
        """An activation on images; `prelu` has one slope per channel."""
        make: dict[str, Callable[[], nn.Module]] = {
            "relu": nn.ReLU,
            "relu in place": lambda: nn.ReLU(inplace=True),
            "relu6": nn.ReLU6,
            "gelu": nn.GELU,
            "silu": nn.SiLU,
            "hardswish": nn.Hardswish,
            "leaky": lambda: nn.LeakyReLU(0.1),
            "tanh": nn.Tanh,
            "prelu": lambda: nn.PReLU(dim.size),
        }
        layer = make[kind]()
        self.record(layer, weight=(dim,))
        return layer
