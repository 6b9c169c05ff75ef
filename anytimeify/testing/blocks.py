"""Building blocks of generated backbones: plain data that builds a module at the ledger's width.

A `Block` keeps the stream's channels (or, for dense connectivity, appends to them) and works on what the `State` says:
an image `(n, c, side, side)` or tokens `(n, tokens, c)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from anytimeify.testing.dims import Dim, Ledger, concatenation, product, whole
from anytimeify.testing.modules import (
    Attention,
    ChannelsLast,
    Concatenate,
    Gate,
    GroupShuffle,
    ImageScale,
    PatchTokens,
    Residual,
    SqueezeExcite,
    TokensToImage,
    Transposed,
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
    "Mlp",
    "Pyramid",
    "SelfAttention",
    "Shuffled",
    "SpaceToDepth",
    "SpatialAttention",
    "State",
    "TokenConv",
    "TokenMixing",
    "TokenScale",
]


@dataclass(frozen=True)
class State:
    """What flows between blocks. `tokens` is zero for images; `group_width` is what grouped layers on the stream use."""

    dim: Dim
    side: int
    tokens: int = 0
    group_width: int = 1


@dataclass(frozen=True)
class Block:
    """`grouped`: the block has a grouped layer or group norm on the stream, which then keeps whole groups.
    `repeats`: how many entries per channel the block reads somewhere (pixel shuffles)."""

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
    """Narrow (or inverted) in the middle; the middle convolution in groups of `unit` channels, depthwise when it is 1."""

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

    mode: Literal["nearest", "bilinear"] = "nearest"

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        up = nn.Upsample(scale_factor=2, mode=self.mode)
        return Residual(nn.Sequential(nn.AvgPool2d(2), ledger.conv(state.dim, state.dim, 3), up)), state


@dataclass(frozen=True)
class SpaceToDepth(Block):
    """Pixels to channels, a convolution, and back; four entries per channel in between."""

    @property
    def repeats(self) -> int:
        return 4

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        deep = product(state.dim, whole(4))
        branch = nn.Sequential(nn.PixelUnshuffle(2), ledger.conv(deep, deep, 1, bias=True), nn.PixelShuffle(2))
        return Residual(branch), state


@dataclass(frozen=True)
class SelfAttention(Block):
    """Norm, multi-head attention, shortcut, on tokens."""

    heads: int = 2
    head_size: int = 4
    form: str = "unbind"
    fused: bool = True
    norm: str = "layer"
    bias: bool = True
    head_norm: bool = False
    position_bias: bool = False
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        norm = ledger.token_norm(self.norm, state.dim)
        return Residual(nn.Sequential(norm, self.attention(ledger, state)), drop=self.drop), state

    def attention(self, ledger: Ledger, state: State) -> nn.Module:
        inner = ledger.compound(self.heads, self.head_size)
        if self.form == "separate":
            projections = [ledger.linear(state.dim, inner, bias=self.bias) for _ in range(3)]
        else:
            projections = [ledger.linear(state.dim, product(whole(3), inner), bias=self.bias)]
        heads = inner.size // self.head_size
        attention = Attention(
            heads,
            self.head_size,
            projections,
            ledger.linear(inner, state.dim),
            form=self.form,
            fused=self.fused,
            norms=[ledger.token_norm("layer", whole(self.head_size)) for _ in range(2)] if self.head_norm else [],
            positions=state.tokens if self.position_bias else 0,
        )
        tokens = whole(state.tokens)
        kept_heads = Dim(self.heads, tuple(range(heads)))
        ledger.record(attention, position_bias=(kept_heads, tokens, tokens))
        return attention


@dataclass(frozen=True)
class SpatialAttention(Block):
    """Attention among the positions of an image."""

    attention: SelfAttention = SelfAttention()

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        as_tokens = replace(state, tokens=state.side**2)
        module = self.attention.attention(ledger, as_tokens)
        return Residual(nn.Sequential(PatchTokens(), module, TokensToImage(state.side))), state


@dataclass(frozen=True)
class Mlp(Block):
    """Norm, two linear layers, shortcut, on tokens; `gate` makes it a gated linear unit."""

    hidden: int = 8
    norm: str = "layer"
    gate: str = ""
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        hidden = ledger.free(self.hidden)
        target = concatenation(hidden, hidden) if self.gate else hidden
        branch = nn.Sequential(
            ledger.token_norm(self.norm, state.dim),
            ledger.linear(state.dim, target),
            Gate(self.gate, -1, hidden.size) if self.gate else nn.GELU(),
            nn.Dropout(self.drop),
            ledger.linear(hidden, state.dim),
        )
        return Residual(branch, drop=self.drop), state


@dataclass(frozen=True)
class TokenMixing(Block):
    """Two linear layers along the tokens (MLP-Mixer); tokens stay, the hidden layer is narrowed."""

    hidden: int = 8
    norm: str = "layer"

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        tokens, hidden = whole(state.tokens), ledger.free(self.hidden)
        mix = nn.Sequential(ledger.linear(tokens, hidden), nn.GELU(), ledger.linear(hidden, tokens))
        return Residual(nn.Sequential(ledger.token_norm(self.norm, state.dim), Transposed(mix))), state


@dataclass(frozen=True)
class TokenConv(Block):
    """A convolution along the tokens, depthwise or full."""

    depthwise: bool = True

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        width = 1 if self.depthwise else None
        conv = ledger.conv(state.dim, state.dim, 3, group_width=width, bias=True, rank=1)
        return Residual(Transposed(conv)), state


@dataclass(frozen=True)
class TokenScale(Block):
    """A learnt scale and offset per channel."""

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        return ledger.scale(state.dim), state


def _inner(ledger: Ledger, units: int, unit: int, grouped: bool) -> Dim:
    return ledger.compound(units, unit) if grouped else ledger.free(units * unit)


def _squeeze_excite(ledger: Ledger, dim: Dim, hidden: int, *, linear: bool) -> nn.Module:
    squeezed = ledger.free(hidden)
    if linear:
        return SqueezeExcite(ledger.linear(dim, squeezed), ledger.linear(squeezed, dim), linear=True)
    reduce, expand = ledger.conv(dim, squeezed, 1, bias=True), ledger.conv(squeezed, dim, 1, bias=True)
    return SqueezeExcite(reduce, expand, linear=False)
