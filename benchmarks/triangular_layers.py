"""How long a triangular layer takes in each of its forms, against the dense layer of the same size.

    python benchmarks/triangular_layers.py
    python benchmarks/triangular_layers.py --levels 8 --batches 16 64 --kernels 1 3 --channels-last
    python benchmarks/triangular_layers.py --device cuda --batches 128

One row per layer of a residual network on 32x32 pixels: milliseconds of the plain dense layer, and the shares of them
that the masked dense form, the fixed rule of thumb, and what measuring has chosen take. Forms are timed in turns and
the minimum counts; on one thread it is the thread's own time, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anytimeify import kernels

LAYERS = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8))  # channels, pixels along a side
FORMS: tuple[kernels.Kind, ...] = ("masked", "blocks", "measured")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="*", default=[16])
    parser.add_argument("--kernels", type=int, nargs="*", default=[3])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    print("| channels | pixels | kernel | batch | step | dense, ms | " + " | ".join(FORMS) + " |")
    print(f"|{'---|' * (6 + len(FORMS))}")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    for kernel in options.kernels:
        for batch in options.batches:
            for channels, side in LAYERS:
                size = (channels, side, kernel, batch)
                for backward in (False, True):
                    dense, *shares = measure(size, options.levels, layout, options.device, options.rounds, backward)
                    step = "forward and backward" if backward else "forward"
                    row = " | ".join([*map(str, size), step, f"{1000 * dense:.2f}", *(f"{one:.2f}" for one in shares)])
                    print(f"| {row} |", flush=True)


def measure(
    size: tuple[int, int, int, int],
    levels: int,
    layout: torch.memory_format,
    device: str,
    rounds: int,
    backward: bool,
) -> list[float]:
    """Seconds of the dense layer, and what share of them each form takes."""
    channels, side, kernel, batch = size
    x = torch.randn(batch, channels, side, side, device=device).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, channels, kernel, kernel, device=device).contiguous(memory_format=layout)
    weight.requires_grad_()
    ends = [channels * level // levels for level in range(1, levels + 1)]
    window = ([1, 1], [kernel // 2] * 2, [1, 1])
    grad = torch.randn_like(x)

    def dense() -> Tensor:
        return F.conv2d(x, weight, None, *window)

    def triangular() -> Tensor:
        return kernels.triangular_conv(x, weight, None, ends, ends, levels, *window)

    def turn(layer: Callable[[], Tensor]) -> None:
        with torch.set_grad_enabled(backward):
            y = layer()
        if backward:
            torch.autograd.grad(y, (x, weight), grad)

    best = [float("inf")] * (1 + len(FORMS))
    for attempt in range(rounds + 2):
        best[0] = min(best[0], timed(lambda: turn(dense), device))
        for place, form in enumerate(FORMS, start=1):
            with kernels.form(form):
                spent = timed(lambda: turn(triangular), device)
            best[place] = min(best[place], spent if attempt > 1 else float("inf"))
    return [best[0], *(one / best[0] for one in best[1:])]


def timed(turn: Callable[[], None], device: str) -> float:
    """Seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    turn()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
