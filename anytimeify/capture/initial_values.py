"""What a fresh copy of a parameter starts with: as its initialiser draws it, or as the network's constructor did.

An initialiser that can run again is not always how a network was initialised: torchvision's networks, and many others,
draw weights in `__init__` once their layers have drawn theirs. What is there now tells, as long as it still looks like
an initial state: a constant, or draws of which none depends on its place. Trained values tell nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["initial", "is_matrix", "looks_drawn", "shows_training"]

_SIGMAS = 6.0  # how far chance goes: what looks drawn is seldom missed
_LIKELY = 3.0  # how far it likely goes: to take two distributions for two costs nothing
_SAMPLE = 256  # elements that are looked at for repetitions, and of every dimension for dependence
_POOL = 2**16  # elements to draw from: as good as all of them, and near each other in memory
_FEW, _MANY = 32, 4096  # elements of which nothing can be told, and of which training would show


def initial(present: Tensor, drawn: Tensor, *, untrained: bool) -> Tensor:
    """What a fresh copy of `present` starts with, where its initialisers have given `drawn`, the same values if none
    has touched it. `untrained`: whether it looks drawn, or lies in one layer with weights that do.

    1. a constant stays one: training leaves none (a single number is none, it may be trained);
    2. what the initialisers drew, where it is spread like what is there, or where what is there is trained;
    3. draws of the distribution that is there, where it looks drawn and no initialiser draws it so;
    4. what is there, where it repeats a pattern (an identity, a filter), or where it does not look drawn and no
       initialiser makes it.
    """
    if not present.is_floating_point() or present.is_meta or present.numel() < 2:
        return drawn
    if _constant(present):
        return present
    touched = not torch.equal(present, drawn)
    if touched and (_constant(drawn) or _spread_alike(present, drawn)):
        return drawn
    if _repeats(present):
        return present
    if untrained or not (touched or is_matrix(present) or _neighbours_alike(present)):
        return _drawn_like(present)
    return drawn  # where nothing has touched it, that is what is there


def shows_training(present: Tensor, drawn: Tensor) -> bool:
    """Whether a parameter that initialisers make constant has got other values, as norms and biases do."""
    return present.numel() > 1 and not present.is_meta and _constant(drawn) and not _constant(present)


def _constant(tensor: Tensor) -> bool:
    """Whether all elements are one number."""
    flat = tensor.flatten()
    return len(flat) > 0 and bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())


def _spread_alike(one: Tensor, other: Tensor) -> bool:
    """Whether means and standard deviations are those of one distribution."""
    means, spreads = zip(*((float(t.float().mean()), float(t.float().std())) for t in (one, other)), strict=True)
    chance = _LIKELY / math.sqrt(one.numel())
    if abs(means[0] - means[1]) > chance * math.sqrt(2) * max(spreads):
        return False
    return min(spreads) > 0 and abs(math.log(spreads[0] / spreads[1])) <= chance + 0.01


def _repeats(tensor: Tensor) -> bool:
    """Whether most elements, but zeros, are there again: no draws of a continuous distribution."""
    flat = tensor.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLE**2)]
    sample = sample[sample != 0][:_SAMPLE]
    return len(sample) > 1 and 2 * len(sample.unique()) <= len(sample)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor has several dimensions, and elements enough to tell how they came about."""
    return sum(size > 1 for size in tensor.shape) > 1 and tensor.numel() >= _FEW


def looks_drawn(matrix: Tensor, *, certain: bool = False) -> bool:
    """Whether elements may be independent draws of one distribution: neighbours do not resemble each other, and the
    slices along every dimension have the mean and the spread of the whole as far as chance goes. Of few elements that
    is never `certain`."""
    if matrix.is_meta or not matrix.is_floating_point() or (certain and matrix.numel() < _MANY):
        return False
    corner = matrix[tuple(slice(_SAMPLE) for _ in matrix.shape)].float()
    centred = corner - corner.mean()
    variance = centred.square().mean()
    if not variance > 0 or _neighbours_alike(corner):
        return False
    tails = float(centred.pow(4).mean() / variance**2) - 1  # relative variance of a square
    slices = (centred.movedim(dim, 0).flatten(1) for dim, size in enumerate(corner.shape) if size > 1)
    return all(_alike(one, float(variance), tails) for one in slices)


def _alike(slices: Tensor, variance: float, tails: float) -> bool:
    """Whether means and spreads of the rows differ by chance only."""
    count, entries = slices.shape
    means = float(slices.mean(1).var()) / variance * entries
    squares = float(slices.square().mean(1).var()) / variance**2 * entries / max(tails, 1e-6)
    # By chance both are a chi-square variable over its degrees of freedom (the cube of Wilson and Hilferty).
    spread = 2 / (9 * (count - 1))
    limit = (1 - spread + _SIGMAS * math.sqrt(spread * (1 + 6 / entries))) ** 3
    return max(means, squares) <= limit


def _neighbours_alike(tensor: Tensor) -> bool:
    """Whether elements are correlated with those next to them, along the last dimension that has several."""
    centred = (tensor - tensor.mean()).flatten().float()
    correlation = float((centred[1:] * centred[:-1]).mean() / centred.square().mean())
    return abs(correlation) > _SIGMAS / math.sqrt(len(centred))


def _drawn_like(present: Tensor) -> Tensor:
    """Entries of the tensor at random; slices of zeros (padding of an embedding) stay zeros, and orthogonal rows or
    columns are drawn orthogonal."""
    if (gain := _orthogonal_gain(present)) is not None:
        return nn.init.orthogonal_(torch.empty_like(present), gain)
    flat = present.flatten()
    pool = flat[:: max(1, len(flat) // _POOL)]
    picked = torch.randint(len(pool), (len(flat),), device=flat.device, dtype=torch.int32)  # half the memory of int64
    result = pool.index_select(0, picked).reshape(present.shape)
    if present.ndim > 1:
        result[(present == 0).flatten(1).all(1)] = 0
    return result


def _orthogonal_gain(tensor: Tensor) -> float | None:
    """The length that all rows, or else all columns, have if they are orthogonal."""
    if tensor.ndim < 2 or tensor.dtype not in (torch.float32, torch.float64):
        return None
    rows = tensor.flatten(1)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    squares = rows.square().sum(1)
    size = float(squares.mean())
    if len(rows) < 2 or float((squares / size - 1).abs().max()) > 1e-3:
        return None
    products = rows @ rows.T - torch.diag(squares)
    return math.sqrt(size) if float(products.abs().max()) < 1e-3 * size else None
