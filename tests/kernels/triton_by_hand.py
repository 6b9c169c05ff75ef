"""Run by test_triton.py in a process of its own: the kernels, interpreted, against products of torch in double."""

from __future__ import annotations

import itertools

import torch

from anytimeify.kernels import products, staircase, triton_products

SHAPES = (
    staircase(40, 24, (10, 20, 30, 40), (6, 12, 18, 24), 4),
    staircase(70, 66, (4, 8, 40, 60, 65, 70), (6, 12, 18, 48, 50, 60), 3),  # scattered, the last columns unread
    staircase(33, 17, (3, 3, 20, 33), (0, 9, 9, 17), 4),  # rows without columns
    staircase(16, 16, (16,), (16,), 1),
)
LAYOUTS = {"positions": (50,), "samples": (3, 21), "inner": (2, 9)}


def main() -> None:
    """Compare results and gradients; raises where they differ."""
    torch.manual_seed(0)
    for shape, (layout, size) in itertools.product(SHAPES, LAYOUTS.items()):
        x, grad = (tensor(size, channels, layout) for channels in (shape.width, shape.height))
        weight, bias = torch.randn(shape.height, shape.width), torch.randn(shape.height)
        hole = products.masked(torch.ones_like(weight), shape) == 0
        poisoned = weight.masked_fill(hole, torch.nan)
        kept = weight.masked_fill(hole, 0)
        for own in (bias, None):
            expected = products.product(x.double(), kept.double(), None if own is None else own.double(), shape, 1)
            torch.testing.assert_close(
                triton_products.product(x, poisoned, own, shape).double(), expected, rtol=1e-4, atol=1e-4
            )
        for wanted in ((True, True), (False, True), (True, False)):
            found = triton_products.product_gradients(grad, x, poisoned, shape, wanted)
            exact = products.product_gradients(grad.double(), x.double(), kept.double(), shape, 1, wanted)
            for one, other in zip(found, exact, strict=True):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
            assert found.weight is None or not found.weight[hole].any()


def tensor(size: tuple[int, ...], channels: int, layout: str) -> torch.Tensor:
    """(positions, channels), or (samples, channels, positions); `inner`: with the channels innermost in memory."""
    if len(size) == 1:
        return torch.randn(size[0], channels)
    samples, positions = size
    x = torch.randn(samples, channels, positions)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "inner" else x


if __name__ == "__main__":
    main()
