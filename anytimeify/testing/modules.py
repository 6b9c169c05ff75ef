"""The plain modules that generated backbones are made of. They take sizes only and know nothing of widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "ChannelsLast",
    "Concatenate",
    "Gate",
    "GroupShuffle",
    "ImageScale",
    "PadShortcut",
    "Pooled",
    "Repeated",
    "Residual",
    "ScaledBias",
    "ShuffleUnit",
    "SqueezeExcite",
    "StochasticDepth",
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


class Repeated(nn.Module):
    """One module used twice: its weights are tied, its norms see two inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))  # type: ignore[no-any-return]


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
