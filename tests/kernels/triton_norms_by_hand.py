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
    doubles = [None if one is None else one.double() for one in (x, weight, bias, grad)]
    exact = norms_together.norm(doubles[0], ends, *doubles[1:3], 1e-5, centred)  # type: ignore[arg-type]  # input is there
    found = triton_norms.norm(x, weight, bias, ends, 1e-5, centred)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    statistics = (exact.means, exact.variances)
    for wanted in (
        (True, weight is not None, bias is not None),
        (True, False, False),
        (False, weight is not None, False),
    ):
        expected = norms_together.gradients(doubles[3], *doubles[:3], *statistics, ends, centred, wanted)  # type: ignore[arg-type]
        given = triton_norms.gradients(grad, x, weight, bias, *found[1:], ends, centred, wanted)
        for needed, own, right in zip(wanted, given, expected, strict=True):
            if needed:
                assert own is not None
                assert right is not None
                torch.testing.assert_close(own.double(), right, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
