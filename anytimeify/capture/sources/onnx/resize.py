"""Resizing and sampling.

torch's functions are taken where they compute the same: `nearest` where ONNX rounds as torch does, `linear` and `cubic`
with torch's coordinates. Everything else that is separable is computed axis by axis: an index for nearest neighbours,
a matrix for the others, which is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row

__all__ = ["ROWS"]


def _resize(
    x: Tensor,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    if antialias or keep_aspect_ratio_policy != "stretch":
        raise NotReadError("antialias and keep_aspect_ratio_policy are not read")
    if coordinate_transformation_mode == "tf_crop_and_resize":
        raise NotReadError("coordinate_transformation_mode=tf_crop_and_resize is not read")
    chosen = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    targets, factors = _targets(x, chosen, scales, sizes)
    changed = [axis for axis in chosen if targets[axis] is not None]
    if not changed:
        return x
    found = _of_torch(
        x, changed, targets, factors, mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, exclude_outside
    )
    if found is not None:
        return found
    for axis in changed:
        target = int(targets[axis])
        places = _places(x.shape[axis], target, factors[axis], coordinate_transformation_mode)
        if mode == "nearest":
            index = _rounded(places, nearest_mode).clip(0, x.shape[axis] - 1)
            x = x.index_select(axis, torch.tensor(index, dtype=torch.int64, device=x.device))
        else:
            a = cubic_coeff_a if mode == "cubic" else None
            matrix = torch.tensor(_matrix(places, x.shape[axis], a, exclude_outside), dtype=x.dtype, device=x.device)
            x = torch.tensordot(x, matrix, ([axis], [1])).movedim(-1, axis)
    return x


def _targets(
    x: Tensor, chosen: Sequence[int], scales: Array | None, sizes: Array | None
) -> tuple[dict[int, Any], dict[int, float]]:
    """For every axis its new size, None where it keeps its own, and the factor by which places are computed."""
    targets: dict[int, Any] = {}
    factors: dict[int, float] = {}
    if sizes is not None and sizes.size:
        for axis, size in zip(chosen, sizes.reshape(-1).tolist(), strict=True):
            same = axis == 0 or (isinstance(size, int) and isinstance(x.shape[axis], int) and size == x.shape[axis])
            targets[axis] = None if same else size
            factors[axis] = 1.0 if same else size / x.shape[axis]
        return targets, factors
    if scales is None or not scales.size:
        raise NotReadError("neither its scales nor its sizes are given")
    for axis, factor in zip(chosen, scales.reshape(-1).tolist(), strict=True):
        targets[axis] = None if factor == 1 else math.floor(x.shape[axis] * factor)
        factors[axis] = factor
    return targets, factors


_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _of_torch(
    x: Tensor,
    changed: Sequence[int],
    targets: dict[int, Any],
    factors: dict[int, float],
    mode: str,
    coordinates: str,
    rounding: str,
    a: float,
    exclude: int,
) -> Tensor | None:
    """`F.interpolate`, where that is the same for sizes that are a multiple, or with torch's own coordinates."""
    if min(changed) < 2 or x.dim() not in _TORCH_LINEAR:
        return None
    size = [x.shape[axis] if targets.get(axis) is None else int(targets[axis]) for axis in range(2, x.dim())]
    whole = all(new % old == 0 for new, old in zip(size, x.shape[2:], strict=True))
    exact = all(abs(factors.get(axis, 1.0) * x.shape[axis] - size[axis - 2]) < 1e-6 for axis in range(2, x.dim()))
    if not exact:
        return None
    if mode == "nearest":
        asymmetric = coordinates == "asymmetric" and rounding == "floor"
        repeats = whole and coordinates in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
        return F.interpolate(x, size, mode="nearest") if asymmetric or repeats else None
    alone = any(new == 1 for new in size)
    if coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners") or alone:
        return None
    corners = coordinates == "align_corners"
    if mode == "linear":
        return F.interpolate(x, size, mode=_TORCH_LINEAR[x.dim()], align_corners=corners)
    if mode == "cubic" and x.dim() == 4 and a == -0.75 and not exclude:
        return F.interpolate(x, size, mode="bicubic", align_corners=corners)
    return None


def _places(size: int, target: int, factor: float, coordinates: str) -> Array:
    """Where each new element lies among the old ones; in 32 bits, as onnxruntime computes it, for what is just below a
    half is rounded down."""
    new, scale = np.arange(target, dtype=np.float32), np.float32(factor)
    if coordinates == "asymmetric":
        return new / scale
    if coordinates == "align_corners":
        return new * np.float32(size - 1) / np.float32(target - 1) if target > 1 else np.zeros(1, np.float32)
    if coordinates == "pytorch_half_pixel" and target == 1:
        return np.zeros(1, np.float32)
    if coordinates == "half_pixel_symmetric":
        adjusted = target / (scale * size)
        return size / 2 * (1 - adjusted) + (new + 0.5) / scale - 0.5
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise NotReadError(f"coordinate_transformation_mode={coordinates} is not read")
    return (new + 0.5) / scale - 0.5


def _rounded(places: Array, rounding: str) -> Array:
    functions: dict[str, Callable[[Array], Array]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda one: np.ceil(one - 0.5),
        "round_prefer_ceil": lambda one: np.floor(one + 0.5),
    }
    if rounding not in functions:
        raise NotReadError(f"nearest_mode={rounding} is not read")
    return functions[rounding](places)


def _matrix(places: Array, size: int, a: float | None, exclude: int) -> Array:
    """What each new element takes of each old one: of two neighbours, or of four with the coefficient `a`."""
    matrix = np.zeros((len(places), size))
    first = np.floor(places).astype(int)
    for row, (base, rest) in enumerate(zip(first, places - first, strict=True)):
        if a is None:
            weights = {base: 1 - rest, base + 1: rest}
        else:
            weights = {base + offset: _cubic(abs(rest - offset), a) for offset in (-1, 0, 1, 2)}
        if exclude and a is not None:
            weights = {place: share for place, share in weights.items() if 0 <= place < size}
            total = sum(weights.values())
            weights = {place: share / total for place, share in weights.items()}
        for place, share in weights.items():
            matrix[row, min(max(place, 0), size - 1)] += share
    return matrix


def _cubic(distance: float, a: float) -> float:
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    if distance < 2:
        return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return 0.0


_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    return F.grid_sample(x, grid, _GRID_MODES.get(mode, mode), padding_mode, bool(align_corners))


ROWS = (
    Row("Resize", 11, _resize, numbers=(1, 2, 3)),
    Row("GridSample", 16, _grid_sample),
)
