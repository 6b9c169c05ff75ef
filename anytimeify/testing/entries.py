"""How generated backbones begin, change their stream and end: an entry makes a new stream, a head the output."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from anytimeify.testing.blocks import State
from anytimeify.testing.dims import Dim, Ledger, concatenation, product, whole
from anytimeify.testing.modules import PadShortcut, Pooled, Residual, ShuffleUnit
from anytimeify.testing.token_modules import (
    ClassToken,
    PatchTokens,
    Pick,
    PositionEmbedding,
    TokenMerge,
    TokensToImage,
)

__all__ = [
    "Conv",
    "ConvHead",
    "DenseHead",
    "Entry",
    "FlattenHead",
    "Head",
    "Merge",
    "Padded",
    "Patches",
    "PoolHead",
    "Projection",
    "Separable",
    "ShuffleUnits",
    "Stream",
    "TokenHead",
    "TokenLinear",
    "Unpatch",
    "Unshuffled",
]


@dataclass(frozen=True)
class Stream:
    """The channels of a stage: an axis group of `channels`, in multiples of `quantum`; see `Ledger.free` for `also`."""

    channels: int
    group_width: int = 1
    quantum: int = 1
    also: tuple[int, ...] = ()

    def new(self, ledger: Ledger, repeats: int = 1) -> Dim:
        return ledger.free(self.channels, self.quantum, (*self.also, repeats))


@dataclass(frozen=True)
class Entry:
    """The first layers of a stage. `repeats`: entries per channel that it reads of the stream before (see `Block`)."""

    @property
    def grouped(self) -> bool:
        return getattr(self, "norm", None) == "group"

    @property
    def repeats(self) -> int:
        return 1

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Entry):
    """Convolution, norm, activation, and perhaps a pooling."""

    kernel: int = 3
    stride: int = 1
    norm: str = "batch"
    activation: str = "relu"
    pool: str = ""

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim = stream.new(ledger)
        layers = [
            ledger.conv(state.dim, dim, self.kernel, stride=self.stride, bias=self.norm == "none"),
            ledger.image_norm(self.norm, dim, stream.group_width),
            ledger.activation(self.activation, dim),
        ]
        side = -(-state.side // self.stride)
        if self.pool:
            layers.append(nn.MaxPool2d(2) if self.pool == "max" else nn.AvgPool2d(2))
            side //= 2
        return nn.Sequential(*layers), State(dim, side, 0, stream.group_width)


@dataclass(frozen=True)
class Separable(Entry):
    """A depthwise convolution on the old stream, then a pointwise one to the new."""

    kernel: int = 3
    stride: int = 1

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim = stream.new(ledger)
        depthwise = ledger.conv(state.dim, state.dim, self.kernel, stride=self.stride, group_width=1)
        layers = [depthwise, ledger.image_norm("batch", state.dim), nn.ReLU6(), ledger.conv(state.dim, dim, 1)]
        return nn.Sequential(*layers), State(dim, -(-state.side // self.stride), 0, stream.group_width)


@dataclass(frozen=True)
class Projection(Entry):
    """A residual block whose shortcut is a strided 1x1 convolution."""

    stride: int = 2
    norm: str = "batch"

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim, width = stream.new(ledger), stream.group_width
        inner = ledger.free(stream.channels, width if self.grouped else 1)

        def normed(source: Dim, target: Dim, kernel: int, stride: int) -> list[nn.Module]:
            conv = ledger.conv(source, target, kernel, stride=stride)
            return [conv, ledger.image_norm(self.norm, target, width)]

        branch = nn.Sequential(*normed(state.dim, inner, 3, self.stride), nn.ReLU(), *normed(inner, dim, 3, 1))
        shortcut = nn.Sequential(*normed(state.dim, dim, 1, self.stride))
        side = -(-state.side // self.stride)
        return Residual(branch, shortcut, nn.ReLU()), State(dim, side, 0, stream.group_width)


@dataclass(frozen=True)
class Padded(Entry):
    """A residual block whose shortcut subsamples and pads with zero channels: the new stream is a concatenation of
    the padding and the old stream. The stage's own number of channels is not used."""

    before: int = 2
    after: int = 2
    stride: int = 2

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        nothing = whole(0)
        before = ledger.free(self.before) if self.before else nothing
        after = ledger.free(self.after) if self.after else nothing
        dim = concatenation(before, state.dim, after)
        inner = ledger.free(dim.full)
        branch = nn.Sequential(
            ledger.conv(state.dim, inner, 3, stride=self.stride),
            ledger.image_norm("batch", inner),
            nn.ReLU(),
            ledger.conv(inner, dim, 3),
        )
        shortcut = PadShortcut(self.stride, before.size, after.size)
        side = -(-state.side // self.stride)
        return Residual(branch, shortcut, nn.ReLU()), State(dim, side, 0, stream.group_width)


@dataclass(frozen=True)
class ShuffleUnits(Entry):
    """A run of ShuffleNetV2 units: two branches of half the channels each, joined and shuffled."""

    stride: int = 2
    units: int = 2

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        half = replace(stream, channels=stream.channels // 2).new(ledger, repeats=2)
        first = nn.Sequential(
            ledger.conv(state.dim, state.dim, 3, stride=self.stride, group_width=1),
            ledger.conv(state.dim, half, 1),
            ledger.image_norm("batch", half),
            nn.ReLU(),
        )
        units = [ShuffleUnit(first, self._branch(ledger, state.dim, half, self.stride))]
        units += [ShuffleUnit(None, self._branch(ledger, half, half, 1)) for _ in range(1, self.units)]
        side = -(-state.side // self.stride)
        return nn.Sequential(*units), State(product(half, whole(2)), side, 0, stream.group_width)

    def _branch(self, ledger: Ledger, source: Dim, half: Dim, stride: int) -> nn.Module:
        inner = ledger.free(half.full)
        return nn.Sequential(
            ledger.conv(source, inner, 1),
            nn.ReLU(inplace=True),
            ledger.conv(inner, inner, 3, stride=stride, group_width=1),
            ledger.image_norm("batch", inner),
            ledger.conv(inner, half, 1),
            nn.ReLU(inplace=True),
        )


@dataclass(frozen=True)
class Unshuffled(Entry):
    """Pixels to channels, then a 1x1 convolution."""

    @property
    def repeats(self) -> int:
        return 4

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim = stream.new(ledger)
        layers = nn.PixelUnshuffle(2), ledger.conv(product(state.dim, whole(4)), dim, 1, bias=True)
        return nn.Sequential(*layers), State(dim, state.side // 2, 0, stream.group_width)


@dataclass(frozen=True)
class Patches(Entry):
    """An image to tokens by a strided convolution, with an optional class token and position embedding."""

    patch: int = 4
    class_token: bool = True
    positions: bool = True

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim, side = stream.new(ledger), state.side // self.patch
        project = nn.Conv2d(state.dim.size, dim.size, self.patch, stride=self.patch)
        ledger.record(project, weight=(dim, state.dim, whole(self.patch), whole(self.patch)), bias=(dim,))
        layers: list[nn.Module] = [PatchTokens(project)]
        tokens = side**2
        if self.class_token:
            tokens += 1
            layers.append(ClassToken(dim.size))
            ledger.record(layers[-1], token=(whole(1), whole(1), dim))
        if self.positions:
            layers.append(PositionEmbedding(tokens, dim.size))
            ledger.record(layers[-1], positions=(whole(1), whole(tokens), dim))
        return nn.Sequential(*layers), State(dim, side, tokens, stream.group_width)


@dataclass(frozen=True)
class TokenLinear(Entry):
    """A linear layer on tokens."""

    norm: str = "layer"

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim = stream.new(ledger)
        layers = ledger.token_norm(self.norm, state.dim), ledger.linear(state.dim, dim), nn.GELU()
        return nn.Sequential(*layers), replace(state, dim=dim, group_width=stream.group_width)


@dataclass(frozen=True)
class Merge(Entry):
    """Every 2 x 2 tokens joined along their channels, a norm, and a linear layer (Swin)."""

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim, joined, side = stream.new(ledger), concatenation(*[state.dim] * 4), state.side // 2
        layers = TokenMerge(state.side), ledger.token_norm("layer", joined), ledger.linear(joined, dim, bias=False)
        return nn.Sequential(*layers), State(dim, side, side**2, stream.group_width)


@dataclass(frozen=True)
class Unpatch(Entry):
    """Tokens back to an image, then a convolution."""

    def build(self, ledger: Ledger, state: State, stream: Stream) -> tuple[nn.Module, State]:
        dim = stream.new(ledger)
        layers = TokensToImage(state.side), ledger.conv(state.dim, dim, 3, bias=True)
        return nn.Sequential(*layers), State(dim, state.side, 0, stream.group_width)


@dataclass(frozen=True)
class Head:
    """The last layers: from the stream to `classes` predictions."""

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        raise NotImplementedError


@dataclass(frozen=True)
class PoolHead(Head):
    """Global pooling and a linear layer, perhaps with a hidden one."""

    pool: str = "mean"
    hidden: int = 0
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        return nn.Sequential(Pooled(self.pool), *_classifier(ledger, state.dim, classes, self.hidden, self.drop))


@dataclass(frozen=True)
class FlattenHead(Head):
    """Everything flattened into one linear layer (VGG)."""

    hidden: int = 0
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        positions = whole(state.tokens or state.side**2)
        flat = product(positions, state.dim) if state.tokens else product(state.dim, positions)
        return nn.Sequential(nn.Flatten(), *_classifier(ledger, flat, classes, self.hidden, self.drop))


@dataclass(frozen=True)
class ConvHead(Head):
    """A 1x1 convolution to the classes, then the mean over positions."""

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        return nn.Sequential(ledger.conv(state.dim, whole(classes), 1, bias=True), Pooled("mean"))


@dataclass(frozen=True)
class DenseHead(Head):
    """One prediction per pixel, at twice the resolution."""

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        conv = ledger.conv(state.dim, whole(classes), 3, bias=True)
        return nn.Sequential(conv, nn.Upsample(scale_factor=2, mode="bilinear"))


@dataclass(frozen=True)
class TokenHead(Head):
    """A norm, the class token or the mean over tokens, and a linear layer."""

    norm: str = "layer"
    pick: str = "first"
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State, classes: int) -> nn.Module:
        norm = ledger.token_norm(self.norm, state.dim)
        return nn.Sequential(norm, Pick(self.pick), *_classifier(ledger, state.dim, classes, 0, self.drop))


def _classifier(ledger: Ledger, dim: Dim, classes: int, hidden: int, drop: float) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Dropout(drop)] if drop else []
    if hidden:
        middle = ledger.free(hidden)
        layers += [ledger.linear(dim, middle), nn.ReLU(inplace=True)]
        dim = middle
    return [*layers, ledger.linear(dim, whole(classes))]
