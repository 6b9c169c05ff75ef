"""Run by test_triton.py in a process of its own: the kernels of norms, interpreted, against torch's in double."""

from __future__ import annotations

import itertools

import torch

from anytimeify.kernels import norms_together, triton_norms

# The odd ones are no multiples of each other, of which torch's operations would make many pieces.
ENDS = ((4, 8, 12, 16), (2, 4, 8, 16), (16,), (48, 96, 144, 192), (3, 7, 20), (1, 2, 3, 4, 5))
ROWS = (1, 37, 1100)


def main() -> None:
    """Compare results and gradients; raises where they differ."""
    torch.manual_seed(0)
    triton_norms._PROGRAMS = 16  # so that programs take several steps
    for ends, rows, centred in itertools.product(ENDS, ROWS, (True, False)):
        if rows > 100 > ends[-1]:  # takes long
            continue
        for weight, bias in (
            (torch.randn(ends[-1]), torch.randn(ends[-1])),
            (torch.randn(ends[-1]), None),
            (None,) * 2,
        ):
            compare(ends, rows, weight, bias, centred)


def compare(
    ends: tuple[int, ...], rows: int, weight: torch.Tensor | None, bias: torch.Tensor | None, centred: bool
) -> None:
    x, grad = 5 + torch.randn(rows, ends[-1]), torch.randn(rows, ends[-1])
    scale, shift = (None if one is None else one.double() for one in (weight, bias))
    exact = norms_together.norm(x.double(), ends, scale, shift, 1e-5, centred)
    found = triton_norms.norm(x, weight, bias, ends, 1e-5, centred)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    _, means, variances = found
    there = weight is not None
    for wanted in ((True, there, bias is not None), (True, False, False), (False, there, False)):
        found_gradients = triton_norms.gradients(grad, x, weight, bias, means, variances, ends, centred, wanted)
        expected = norms_together.gradients(
            grad.double(), x.double(), scale, shift, exact.means, exact.variances, ends, centred, wanted
        )
        for needed, own, right in zip(wanted, found_gradients, expected, strict=True):
            if needed:
                assert own is not None
                assert right is not None
                torch.testing.assert_close(own.double(), right, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
