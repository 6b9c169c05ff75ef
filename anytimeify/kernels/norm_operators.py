"""`anytimeify::prefix_norm_forward` and `anytimeify::prefix_norm_backward`: a norm of all levels as one operator in
each direction, of operations of torch (`norms_together`) or, where a step is faster by that, one kernel of Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytimeify.kernels import norms_together
from anytimeify.kernels.choice import kernel_pays
from anytimeify.operators.modules import LIBRARY

__all__ = ["BACKWARD", "FORWARD", "Levels", "backward", "forward", "takes_kernel"]

# The statistics of rows and levels are of full precision, the variances with eps. `kernel`: that of Triton.
LIBRARY.define(
    "prefix_norm_forward(Tensor input, Tensor? weight, Tensor? bias, int[] ends, int[] rows, float eps, bool centred, "
    "bool kernel) -> (Tensor, Tensor, Tensor)"
)
# An empty tensor for each of input, weight and bias whose gradient is not wanted.
LIBRARY.define(
    "prefix_norm_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor means, Tensor variances, "
    "int[] ends, int[] rows, bool centred, bool[] wanted, bool kernel) -> (Tensor, Tensor, Tensor)"
)


class Levels(NamedTuple):
    """Where the levels of a norm end, and what kind of norm it is."""

    ends: tuple[int, ...]
    rows: tuple[int, ...]
    centred: bool


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ends: Sequence[int], rows: Sequence[int], eps: float,
    centred: bool, kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the first operator computes."""
    x = x.contiguous()
    if kernel:
        return _triton().norm(x, weight, bias, tuple(ends), eps, centred)  # type: ignore[no-any-return]  # by name
    full = _full(x)
    given = (x.to(full), tuple(ends), _cast(weight, full), _cast(bias, full), eps, centred, tuple(rows))
    found = norms_together.norm(*given)
    return found.y.to(x.dtype), found.means, found.variances


def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, means: Tensor, variances: Tensor,
    ends: Sequence[int], rows: Sequence[int], centred: bool, wanted: Sequence[bool], kernel: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What the second operator computes."""
    grad, x = grad.contiguous(), x.contiguous()
    if kernel:
        found = _triton().gradients(grad, x, weight, bias, means, variances, tuple(ends), centred, wanted)
    else:
        full = _full(x)
        tensors = (grad.to(full), x.to(full), _cast(weight, full), _cast(bias, full), means, variances)
        found = norms_together.gradients(*tensors, tuple(ends), centred, wanted, tuple(rows))
    return tuple(
        grad.new_empty(0) if one is None or like is None else one.to(like.dtype)
        for one, like in zip(found, (x, weight, bias), strict=True)
    )


def _full(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


LIBRARY.impl("prefix_norm_forward", forward, "CompositeExplicitAutograd")
LIBRARY.impl("prefix_norm_backward", backward, "CompositeExplicitAutograd")
FORWARD = torch.ops.anytimeify.prefix_norm_forward.default
BACKWARD = torch.ops.anytimeify.prefix_norm_backward.default


def takes_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, levels: Levels, eps: float, *, trains: bool
) -> bool:
    """Whether Triton's kernels make a step with a norm faster."""
    ends, rows, centred = levels
    if not x.is_cuda or _triton() is None or x.dtype not in _triton().DTYPES:
        return False
    if ends[-1] > _triton().WIDEST or len(rows) > 1:
        return False

    def step(kernel: bool) -> None:
        y, means, variances = forward(x, weight, bias, ends, rows, eps, centred, kernel)
        if trains:
            wanted = [True, weight is not None, bias is not None]
            backward(torch.ones_like(y), x, weight, bias, means, variances, ends, rows, centred, wanted, kernel)

    kind = (x.device, x.dtype, (x.numel() // ends[-1]).bit_length(), weight is None, bias is None)
    return kernel_pays(("norm", kind, levels, trains), x.device, step)


@cache
def _triton() -> Any:
    """The module of Triton kernels; None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("anytimeify.kernels.triton_norms")
