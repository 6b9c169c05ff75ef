"""What activations that stay in chunks would save: stages of a triangular network, written by hand.

    python -m benchmarks.chunked_stages

Four 3x3 convolutions with batch norms and residual additions, forward and backward, in four levels: plain; with masked
weights; and as two or four tensors of channels, each convolution reading the concatenation of those up to its own. The
time of the computing thread, the least of several rounds in turns, as a share of the plain stage's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 4
SIZES = ((64, 32), (128, 16), (256, 8))  # channels, and pixels of a side


class Stage:
    """The tensors of a stage."""

    def __init__(self, channels: int, side: int, batch: int, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(batch, channels, side, side).contiguous(memory_format=layout)
        weights = 0.05 * torch.randn(4, channels, channels, 3, 3)
        self.weights = [one.contiguous(memory_format=layout).requires_grad_() for one in weights]
        self.scales = [torch.ones(channels, requires_grad=True) for _ in self.weights]
        level = torch.arange(channels) * LEVELS // channels
        self.mask = (level[None, :] <= level[:, None]).float()[..., None, None]

    def run(self, parts: int, *, masked: bool) -> Tensor:
        """A forward pass with the channels in so many tensors of equal size; gives a number."""
        size = self.x.shape[1] // parts
        xs: Sequence[Tensor] = self.x.split(size, 1)
        for layer in (0, 2):
            ys = [F.relu(one) for one in self.layer(xs, layer, size, masked=masked)]
            ys = self.layer(ys, layer + 1, size, masked=masked)
            xs = [F.relu(x + y) for x, y in zip(xs, ys, strict=True)]
        return torch.stack([x.square().sum() for x in xs]).sum() / self.x.numel()

    def layer(self, xs: Sequence[Tensor], layer: int, size: int, *, masked: bool) -> list[Tensor]:
        weight, scale = self.weights[layer], self.scales[layer]
        weight = weight * self.mask if masked and len(xs) < LEVELS else weight
        found = []
        for part in range(len(xs)):
            start, end = part * size, (part + 1) * size
            y = F.conv2d(torch.cat(list(xs[: part + 1]), 1) if part else xs[0], weight[start:end, :end], padding=1)
            found.append(F.batch_norm(y, None, None, scale[start:end], None, training=True))
        return found


def shares(stage: Stage, rounds: int) -> list[float]:
    """Of masked weights, and of two and four tensors."""
    forms: list[Callable[[], Tensor]] = [
        lambda: stage.run(1, masked=False),
        *(lambda parts=parts: stage.run(parts, masked=True) for parts in (1, 2, 4)),  # type: ignore[misc]
    ]
    best = [float("inf")] * len(forms)
    for attempt in range(rounds + 1):
        for place, form in enumerate(forms):
            start = time.thread_time()
            form().backward()  # type: ignore[no-untyped-call]  # of torch
            spent = time.thread_time() - start
            best[place] = min(best[place], spent if attempt else float("inf"))
    return [one / best[0] for one in best[1:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| channels | pixels | batch | memory format | masked | two tensors | four tensors |\n|" + "---|" * 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels, side in SIZES:
            for batch in options.batches:
                found = shares(Stage(channels, side, batch, layout), options.rounds)
                cells = " | ".join(f"{one:.2f}" for one in found)
                print(f"| {channels} | {side} | {batch} | {str(layout).removeprefix('torch.')} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
