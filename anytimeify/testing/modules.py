"""The plain modules that generated backbones are made of. They take sizes only and know nothing of widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Attention",
    "ChannelsLast",
    "ClassToken",
    "Concatenate",
    "Gate",
    "GroupShuffle",
    "ImageScale",
    "PadShortcut",
    "PatchTokens",
    "Pick",
    "Pooled",
    "PositionEmbedding",
    "Residual",
    "ScaledBias",
    "ShuffleUnit",
    "SqueezeExcite",
    "StochasticDepth",
    "TokenMerge",
    "TokensToImage",
    "Transposed",
]


class StochasticDepth(nn.Module):
    """Drops the whole branch for single samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        keep.div_(1.0 - self.rate)
        return x * keep


class Residual(nn.Module):
    """`after(shortcut(x) + branch(x))`."""

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        after: nn.Module | None = None,
        *,
        drop: float = 0.0,
        in_place: bool = False,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.drop_path = StochasticDepth(drop) if drop else nn.Identity()
        self.after = after or nn.Identity()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.branch(x))
        if self.in_place:
            y += self.shortcut(x)
            return self.after(y)  # type: ignore[no-any-return]
        return self.after(self.shortcut(x) + y)  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """The parameter-free shortcut of the first ResNets: subsample, then pad channels with zeros."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ChannelsLast(nn.Module):
    """Runs a module on `(n, h, w, c)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """Runs a module with the last two dimensions swapped."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class ScaledBias(nn.Module):
    """`x * weight + bias` along the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class ImageScale(nn.Module):
    """A learnt scale per channel of an image, written as a `(c, 1, 1)` parameter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SqueezeExcite(nn.Module):
    """Channel gates computed from the mean over positions."""

    def __init__(self, reduce: nn.Module, expand: nn.Module, *, linear: bool) -> None:
        super().__init__()
        self.reduce, self.expand, self.linear = reduce, expand, linear

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            gate = self.expand(functional.relu(self.reduce(x.mean((2, 3)))))
            return x * torch.sigmoid(gate)[:, :, None, None]
        gate = self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class Gate(nn.Module):
    """Gated units: one half of a projection opens the other. `sizes` are the channels of the two halves."""

    def __init__(self, form: str, dim: int, size: int) -> None:
        super().__init__()
        self.form, self.dim, self.size = form, dim, size

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "glu":
            return functional.glu(x, self.dim)
        if self.form == "chunk":
            value, gate = x.chunk(2, self.dim)
        elif self.form == "split":
            value, gate = x.split([self.size, self.size], self.dim)
        else:
            value, gate = x.narrow(self.dim, 0, self.size), x.narrow(self.dim, self.size, self.size)
        return value * functional.silu(gate)


class Concatenate(nn.Module):
    """Dense connectivity: the input beside what the branches make of it; each branch reads everything before it."""

    def __init__(self, branches: Sequence[nn.Module], dim: int = 1, *, front: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dim, self.front = dim, front

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            y = branch(x)
            x = torch.cat([y, x] if self.front else [x, y], self.dim)
        return x


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: both halves through branches, or one half passed by, then joined and shuffled."""

    def __init__(self, first: nn.Module | None, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        if self.first is not None:
            return shuffle(torch.cat((self.first(x), self.second(x)), 1), 2)
        one, other = x.chunk(2, 1)
        return shuffle(torch.cat((one, self.second(other)), 1), 2)


class GroupShuffle(nn.Module):
    """ShuffleNetV1: channels exchanged between the groups of two grouped convolutions."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(x, self.groups)


class Attention(nn.Module):
    """Multi-head self-attention over `(n, t, c)`; `form` says how q, k and v come out of the projections."""

    def __init__(
        self,
        heads: int,
        head_size: int,
        projections: Sequence[nn.Module],
        output: nn.Module,
        *,
        form: str,
        fused: bool,
        norms: Sequence[nn.Module] = (),
        positions: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.form, self.fused = heads, head_size, form, fused
        self.projections = nn.ModuleList(projections)
        self.norms = nn.ModuleList(norms)
        self.output = output
        self.position_bias = nn.Parameter(torch.zeros(heads, positions, positions)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        if len(self.norms):
            q, k = self.norms[0](q), self.norms[1](k)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.position_bias)
        else:
            scores = (q * self.head_size**-0.5) @ k.transpose(-2, -1)
            if self.position_bias is not None:
                scores = scores + self.position_bias
            y = scores.softmax(-1) @ v
        n, t = x.shape[0], x.shape[1]
        return self.output(y.transpose(1, 2).reshape(n, t, self.heads * self.head_size))  # type: ignore[no-any-return]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t = x.shape[0], x.shape[1]
        if self.form == "unbind":
            qkv = self.projections[0](x).reshape(n, t, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        elif self.form == "index":
            qkv = self.projections[0](x).view(n, t, 3, self.heads, self.head_size).transpose(1, 3)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        elif self.form == "chunk":
            parts = self.projections[0](x).chunk(3, dim=-1)
            q, k, v = (part.view(n, t, self.heads, self.head_size).transpose(1, 2) for part in parts)
        else:
            parts = tuple(projection(x) for projection in self.projections)
            q, k, v = (part.view(n, -1, self.heads, self.head_size).transpose(1, 2) for part in parts)
        return q, k, v


class PatchTokens(nn.Module):
    """An image to tokens: `(n, c, h, w)` to `(n, h w, c)`, after a convolution if one is given."""

    def __init__(self, project: nn.Module | None = None) -> None:
        super().__init__()
        self.project = project or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class TokensToImage(nn.Module):
    """Tokens back to a square image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        n, _, c = x.shape
        return x.transpose(1, 2).reshape(n, c, self.side, self.side)


class TokenMerge(nn.Module):
    """Joins every 2 x 2 tokens of a square along their channels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        x = x.view(n, self.side, self.side, c)
        corners = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return torch.cat(corners, -1).view(n, t // 4, 4 * c)


class ClassToken(nn.Module):
    """Puts a learnt token in front."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)


class PositionEmbedding(nn.Module):
    """Adds a learnt embedding per token."""

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, tokens, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


class Pooled(nn.Module):
    """Global pooling of images: to `(n, c)`."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "mean":
            return x.mean((2, 3))
        if self.form == "max":
            return x.amax((-2, -1))
        return torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)


class Pick(nn.Module):
    """The class token, or the mean over tokens."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.form == "first" else x.mean(1)
