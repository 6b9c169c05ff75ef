"""The same architecture at another width, with the leading part of every weight copied in. Knows no rules."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["copy_blocks"]


def copy_blocks(full: nn.Module, thin: nn.Module, blocks: Callable[[str, int], int] = lambda name, dim: 1) -> nn.Module:
    """`blocks(name, dim)`: in how many equal blocks a dimension falls, of each of which the leading part is kept."""
    source, result = full.state_dict(), {}
    for name, target in thin.state_dict().items():
        value = source[name]
        for dim, size in enumerate(target.shape):
            count = blocks(name, dim)
            value = value.unflatten(dim, (count, -1)).narrow(dim + 1, 0, size // count).flatten(dim, dim + 1)
        result[name] = value
    thin.load_state_dict(result)
    return thin
