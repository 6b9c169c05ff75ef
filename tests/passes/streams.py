"""Networks with residual units that cut points do not show, each with as many layers as asked for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Alternating", "Conditioned", "Forecast", "PostNorm", "SkipConnected"]


def _parts(layers: nn.ModuleList) -> Iterator[tuple[nn.Module, ...]]:
    for layer in layers:
        assert isinstance(layer, nn.ModuleList)
        yield tuple(layer)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None], -1e4)
        result: Tensor = self.out(scores.softmax(-1) @ v)
        return result


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return result


class Alternating(nn.Module):
    """Attention and feed-forward in turn; a mask that is made from the tokens goes around all of them."""

    inputs = (torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]),)

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.layers = nn.ModuleList(nn.ModuleList([_Attention(8), _FeedForward(8)]) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x, seen = self.embed(tokens), tokens.ne(0)
        for attention, feed_forward in _parts(self.layers):
            x = x + attention(x, seen)
            x = x + feed_forward(x)
        result: Tensor = self.head(x)
        return result


class Conditioned(nn.Module):
    """Every unit is scaled and shifted by what is made from a second input (adaptive layer norm)."""

    inputs = (torch.randn(2, 6, 8), torch.randn(2, 4))

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.time, self.head = nn.Linear(4, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(8, 16), _Attention(8)]) for _ in range(layers))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        time = self.time(time).relu()
        for modulation, attention in _parts(self.layers):
            shift, gate = modulation(time)[:, None].chunk(2, -1)
            x = x + gate * attention(x + shift)
        result: Tensor = self.head(x)
        return result


class PostNorm(nn.Module):
    """The norm stands behind the sum."""

    inputs = (torch.randn(2, 6, 8), torch.randn(2, 6, 8))

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)]) for _ in range(layers))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        for layer, norm in _parts(self.layers):
            x = norm(x + layer(x + positions).relu())
        result: Tensor = self.head(x.mean(1))
        return result


class SkipConnected(nn.Module):
    """A U-Net: residual units at half the resolution, between the ends of a skip connection."""

    inputs = (torch.randn(2, 3, 16, 16),)

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 2, 2)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)) for _ in range(layers)
        )
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.stem(x).relu()
        x = self.down(whole)
        for layer in self.layers:
            x = (x + layer(x)).relu()
        result: Tensor = self.head(torch.cat([self.up(x), whole], 1))
        return result


class Forecast(nn.Module):
    """Every layer takes away what it explains, and adds to a forecast beside (N-BEATS)."""

    inputs = (torch.randn(2, 12),)

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.start, self.last = nn.Linear(12, 4), nn.Linear(12, 4)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(16, 4)]) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        forecast = self.start(x)
        for hidden, back, fore in _parts(self.layers):
            h = hidden(x).relu()
            x, forecast = x - back(h), forecast + fore(h)
        result: Tensor = forecast + self.last(x)
        return result


NETWORKS = (Alternating, Conditioned, PostNorm, SkipConnected, Forecast)
