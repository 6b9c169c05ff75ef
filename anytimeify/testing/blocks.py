"""Building blocks of generated backbones: plain data that builds a module at the ledger's width.

A `Block` keeps the stream's channels (or, for dense connectivity, appends to them) and works on what the `State` says:
an image `(n, c, side, side)` here, tokens `(n, tokens, c)` in `token_blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from anytimeify.testing.dims import Dim, Ledger, concatenation, product, whole
from anytimeify.testing.modules import (
    ChannelsLast,
    Concatenate,
    Gate,
    GroupShuffle,
    ImageScale,
    Repeated,
    Residual,
    SqueezeExcite,
)

__all__ = [
    "Basic",
    "Block",
    "Bottleneck",
    "ConvNeXt",
    "Dense",
    "Excite",
    "Gated",
    "Grouped",
    "Pyramid",
    "Shuffled",
    "SpaceToDepth",
    "State",
    "Tied",
]


@dataclass(frozen=True)
class State:
    """What flows between blocks. `tokens` is zero for images; grouped layers on the stream use `group_width`."""

    dim: Dim
    side: int
    tokens: int = 0
    group_width: int = 1


@dataclass(frozen=True)
class Block:
    """`grouped`: the block has a grouped layer or group norm on the stream, which then keeps whole groups.
    `repeats`: how many elements per channel the block reads somewhere (pixel shuffles)."""

    @property
    def grouped(self) -> bool:
        return getattr(self, "norm", None) == "group"

    @property
    def repeats(self) -> int:
        return 1

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        raise NotImplementedError


@dataclass(frozen=True)
class Basic(Block):
    """Two convolutions and a shortcut; before activation (`pre`) or after it."""

    units: int = 4
    unit: int = 1
    kernel: int = 3
    norm: str = "batch"
    activation: str = "relu"
    pre: bool = False
    in_place: bool = False
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        inner = _inner(ledger, self.units, self.unit, self.norm == "group")
        norms = (
            ledger.image_norm(self.norm, state.dim, state.group_width),
            ledger.image_norm(self.norm, inner, self.unit),
        )
        acts = ledger.activation(self.activation, state.dim), ledger.activation(self.activation, inner)
        convs = ledger.conv(state.dim, inner, self.kernel), ledger.conv(inner, state.dim, self.kernel, bias=True)
        if self.pre:
            branch = nn.Sequential(norms[0], acts[0], convs[0], norms[1], acts[1], convs[1])
            return Residual(branch, drop=self.drop), state
        branch = nn.Sequential(convs[0], norms[1], acts[1], convs[1], norms[0])
        return Residual(branch, after=acts[0], drop=self.drop, in_place=self.in_place), state


@dataclass(frozen=True)
class Bottleneck(Block):
    """Narrow (or inverted) in the middle; that convolution in groups of `unit` channels, depthwise when it is 1."""

    units: int = 4
    unit: int = 1
    kernel: int = 3
    split: bool = False
    norm: str = "batch"
    activation: str = "relu"
    excite: int = 0
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        inner = _inner(ledger, self.units, self.unit, self.split or self.norm == "group")
        group_width = self.unit if self.split else None
        layers = [
            ledger.conv(state.dim, inner, 1),
            ledger.image_norm(self.norm, inner, self.unit),
            ledger.activation(self.activation, inner),
            ledger.conv(inner, inner, self.kernel, group_width=group_width),
            ledger.image_norm(self.norm, inner, self.unit),
            ledger.activation(self.activation, inner),
        ]
        if self.excite:
            layers.append(_squeeze_excite(ledger, inner, self.excite, linear=False))
        layers.append(ledger.conv(inner, state.dim, 1))
        layers.append(ledger.image_norm(self.norm, state.dim, state.group_width))
        return Residual(nn.Sequential(*layers), drop=self.drop), state


@dataclass(frozen=True)
class Grouped(Block):
    """A grouped (or depthwise) convolution on the stream, without a shortcut."""

    kernel: int = 3
    dilation: int = 1
    norm: str = "none"
    activation: str = "relu"

    @property
    def grouped(self) -> bool:
        return True

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        width = state.group_width
        conv = ledger.conv(state.dim, state.dim, self.kernel, dilation=self.dilation, group_width=width, bias=True)
        norm = ledger.image_norm(self.norm, state.dim, width)
        return nn.Sequential(conv, norm, ledger.activation(self.activation, state.dim)), state


@dataclass(frozen=True)
class Shuffled(Block):
    """Two grouped convolutions with a channel shuffle between them (ShuffleNetV1)."""

    @property
    def grouped(self) -> bool:
        return True

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        width = state.group_width
        first = ledger.conv(state.dim, state.dim, 1, group_width=width)
        second = ledger.conv(state.dim, state.dim, 1, group_width=width)
        ledger.ambiguous = True  # before and after the shuffle another factor is outermost
        return Residual(nn.Sequential(first, GroupShuffle(state.dim.size // width), second)), state


@dataclass(frozen=True)
class Excite(Block):
    """Squeeze and excite on the stream."""

    hidden: int = 2
    linear: bool = False

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        return _squeeze_excite(ledger, state.dim, self.hidden, linear=self.linear), state


@dataclass(frozen=True)
class Gated(Block):
    """A projection to twice `hidden` channels whose halves multiply."""

    hidden: int = 4
    form: str = "chunk"

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        hidden = ledger.free(self.hidden)
        widen = ledger.conv(state.dim, concatenation(hidden, hidden), 1, bias=True)
        branch = nn.Sequential(widen, Gate(self.form, 1, hidden.size), ledger.conv(hidden, state.dim, 3))
        return Residual(branch), state


@dataclass(frozen=True)
class ConvNeXt(Block):
    """Depthwise convolution, then a norm and two linear layers on `(n, h, w, c)`, a learnt scale, a shortcut."""

    hidden: int = 8
    kernel: int = 5
    norm: str = "layer"
    scale: Literal["last", "image", "none"] = "last"
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        hidden = ledger.free(self.hidden)
        mlp = [
            ledger.token_norm(self.norm, state.dim),
            ledger.linear(state.dim, hidden),
            nn.GELU(),
            ledger.linear(hidden, state.dim),
        ]
        if self.scale == "last":
            mlp.append(ledger.scale(state.dim))
        layers = [
            ledger.conv(state.dim, state.dim, self.kernel, group_width=1, bias=True),
            ChannelsLast(nn.Sequential(*mlp)),
        ]
        if self.scale == "image":
            layers.append(ImageScale(state.dim.size))
            ledger.record(layers[-1], gamma=(state.dim, whole(1), whole(1)))
        return Residual(nn.Sequential(*layers), drop=self.drop), state


@dataclass(frozen=True)
class Dense(Block):
    """Dense connectivity: every layer reads the concatenation of all before it and adds `growths[i]` channels."""

    growths: tuple[int, ...] = (4,)
    norm: str = "batch"
    bottleneck: int = 0
    front: bool = False

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        dim, branches = state.dim, []
        for growth in self.growths:
            new = ledger.free(growth)
            layers = [ledger.image_norm(self.norm, dim), nn.ReLU()]
            source = dim
            if self.bottleneck:
                source = ledger.free(self.bottleneck)
                layers += [ledger.conv(dim, source, 1), ledger.image_norm(self.norm, source), nn.ReLU()]
            branches.append(nn.Sequential(*layers, ledger.conv(source, new, 3)))
            dim = concatenation(new, dim) if self.front else concatenation(dim, new)
        return Concatenate(branches, front=self.front), replace(state, dim=dim)


@dataclass(frozen=True)
class Pyramid(Block):
    """A branch at half the resolution: pooled, convolved, upsampled, added."""

    mode: Literal["nearest", "bilinear", "transposed"] = "nearest"

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        hidden = state.dim
        up: nn.Module = nn.Upsample(scale_factor=2, mode=self.mode)
        if self.mode == "transposed":
            hidden = ledger.free(state.dim.full)  # between two layers, so whatever the stream is made of
            up = nn.ConvTranspose2d(hidden.size, state.dim.size, 2, stride=2)
            ledger.record(up, weight=(hidden, state.dim, whole(2), whole(2)), bias=(state.dim,))
        return Residual(nn.Sequential(nn.AvgPool2d(2), ledger.conv(state.dim, hidden, 3), up)), state


@dataclass(frozen=True)
class SpaceToDepth(Block):
    """Pixels to channels, a convolution, and back; four elements per channel in between."""

    @property
    def repeats(self) -> int:
        return 4

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        deep = product(state.dim, whole(4))
        branch = nn.Sequential(nn.PixelUnshuffle(2), ledger.conv(deep, deep, 1, bias=True), nn.PixelShuffle(2))
        return Residual(branch), state


@dataclass(frozen=True)
class Tied(Block):
    """A block used twice with the same weights; one that keeps the stream as it is."""

    block: Block = Basic()

    @property
    def grouped(self) -> bool:
        return self.block.grouped

    @property
    def repeats(self) -> int:
        return self.block.repeats

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        module, state = self.block.build(ledger, state)
        return Repeated(module), state


def _inner(ledger: Ledger, units: int, unit: int, grouped: bool) -> Dim:
    return ledger.compound(units, unit) if grouped else ledger.free(units * unit)


def _squeeze_excite(ledger: Ledger, dim: Dim, hidden: int, *, linear: bool) -> nn.Module:
    squeezed = ledger.free(hidden)
    if linear:
        return SqueezeExcite(ledger.linear(dim, squeezed), ledger.linear(squeezed, dim), linear=True)
    reduce, expand = ledger.conv(dim, squeezed, 1, bias=True), ledger.conv(squeezed, dim, 1, bias=True)
    return SqueezeExcite(reduce, expand, linear=False)
