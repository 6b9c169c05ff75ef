"""Building blocks of generated backbones on tokens; attention also among the positions of an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from anytimeify.testing.blocks import Block, State
from anytimeify.testing.dims import Dim, Ledger, concatenation, product, whole
from anytimeify.testing.modules import Gate, Residual
from anytimeify.testing.token_modules import Attention, PatchTokens, TokensToImage, Transposed, Windows

__all__ = [
    "Mlp",
    "SelfAttention",
    "SpatialAttention",
    "TokenConv",
    "TokenMixing",
    "TokenScale",
    "WindowAttention",
]


@dataclass(frozen=True)
class SelfAttention(Block):
    """Norm, multi-head attention, shortcut, on tokens."""

    heads: int = 2
    head_size: int = 4
    form: str = "unbind"
    compute: str = "fused"
    norm: str = "layer"
    bias: bool = True
    head_norm: bool = False
    position_bias: bool = False
    drop: float = 0.0

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        norm = ledger.token_norm(self.norm, state.dim)
        return Residual(nn.Sequential(norm, self.attention(ledger, state)), drop=self.drop), state

    def attention(self, ledger: Ledger, state: State, window: int = 0) -> nn.Module:
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
            compute=self.compute,
            norms=[ledger.token_norm("layer", whole(self.head_size)) for _ in range(2)] if self.head_norm else [],
            positions=state.tokens if self.position_bias and not window else 0,
            window=window if self.position_bias else 0,
        )
        tokens = whole(state.tokens)
        kept_heads = Dim(self.heads, tuple(range(heads)))
        table = whole((2 * window - 1) ** 2)
        ledger.record(attention, position_bias=(kept_heads, tokens, tokens), bias_table=(table, kept_heads))
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
class WindowAttention(Block):
    """Attention inside windows of an image; a position bias is a table of relative positions."""

    attention: SelfAttention = SelfAttention()
    window: int = 2
    shift: bool = False

    def build(self, ledger: Ledger, state: State) -> tuple[nn.Module, State]:
        module = self.attention.attention(ledger, replace(state, tokens=self.window**2), self.window)
        return Residual(Windows(module, self.window, shift=self.shift)), state


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
