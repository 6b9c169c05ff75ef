"""Images to try experiments on, where nothing has to be learnt: `tests.papers.tiny_data:images`."""

from __future__ import annotations

import torch

from anytimeify.train.data import Data, Held


def images() -> Data:
    """128 grey images of 8x8 pixels to train on and 64 to test with, of four classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Held:
        labels = torch.arange(count) % 4
        noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
        return Held((60 * labels[:, None, None, None] + noise).to(torch.uint8), labels)

    return Data("images", drawn(128), drawn(64), tuple("abcd"))
