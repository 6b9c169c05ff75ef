"""The plain modules of generated backbones that work on tokens `(n, t, c)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Attention",
    "ClassToken",
    "PatchTokens",
    "Pick",
    "PositionEmbedding",
    "TokenMerge",
    "TokensToImage",
    "Transposed",
    "Windows",
]


class Transposed(nn.Module):
    """Runs a module with the last two dimensions swapped."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention over `(n, t, c)`.

    `form` says how q, k and v come out of the projections, `compute` how they are multiplied. A position bias is a
    parameter `(heads, t, t)`, or with a `window` a table of relative positions that a buffer of indices reads.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        projections: Sequence[nn.Module],
        output: nn.Module,
        *,
        form: str,
        compute: str,
        norms: Sequence[nn.Module] = (),
        positions: int = 0,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.form, self.compute = heads, head_size, form, compute
        self.projections = nn.ModuleList(projections)
        self.norms = nn.ModuleList(norms)
        self.output = output
        self.position_bias = nn.Parameter(torch.zeros(heads, positions, positions)) if positions else None
        self.bias_table: nn.Parameter | None = None
        if window:
            self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.bias_index: Tensor
        self.register_buffer("bias_index", relative_positions(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        if len(self.norms):
            q, k = self.norms[0](q), self.norms[1](k)
        n, t = x.shape[0], x.shape[1]
        bias: Tensor | None = self.position_bias
        if self.bias_table is not None:
            table: Tensor = self.bias_table[self.bias_index.view(-1)]
            bias = table.view(t, t, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.compute == "fused":
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            q = q * self.head_size**-0.5
            scores = torch.einsum("nhid,nhjd->nhij", q, k) if self.compute == "einsum" else q @ k.transpose(-2, -1)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            y = torch.einsum("nhij,nhjd->nhid", weights, v) if self.compute == "einsum" else weights @ v
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


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for every pair of positions in a window, `(t, t)` with t = window^2."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    apart = [one.flatten()[:, None] - one.flatten()[None, :] + window - 1 for one in (rows, columns)]
    return apart[0] * (2 * window - 1) + apart[1]


class Windows(nn.Module):
    """Attention inside square windows of an image, which may be shifted by half a window (Swin)."""

    def __init__(self, attention: nn.Module, window: int, *, shift: bool) -> None:
        super().__init__()
        self.attention, self.window, self.shift = attention, window, window // 2 if shift else 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        size = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)
        x = self.attention(x).view(-1, size, size, c)
        x = x.view(n, h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, -1)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x.permute(0, 3, 1, 2)


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


class Pick(nn.Module):
    """The class token, or the mean over tokens."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.form == "first" else x.mean(1)
