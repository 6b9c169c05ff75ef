"""The batches of an epoch. All that is drawn for one depends on the seed, the epoch and its number alone, so that a run
that was killed goes on in the middle of an epoch, however many processes load samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anytimeify.errors import ArgumentValueError
from anytimeify.train.data.samples import Batch, Samples

__all__ = ["Loader", "mixed_seed"]

IGNORED = -100  # the label of a sample that does not count


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers."""
    result = 0
    for number in numbers:
        result = (result * 1_000_003 + number + 1) % (2**61 - 1)
    return result


@dataclass(frozen=True)
class Loader:
    """Batches of `batch` samples, of which every process of a run loads its share.

    Fields
        process, processes: which share, of how many.
        workers: processes that load samples beside this one.
        limit: at most so many batches in an epoch.
    """

    samples: Samples
    batch: int
    seed: int
    process: int = 0
    processes: int = 1
    workers: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size % self.processes:
            raise ArgumentValueError(
                f"a batch of {self.size} samples cannot be shared by {self.processes} processes: take a multiple"
            )

    @property
    def size(self) -> int:
        """Samples in a step, of all processes together: all there are, where these are fewer than a batch."""
        everything = len(self.samples) - len(self.samples) % self.processes
        return min(self.batch, everything)

    @property
    def steps(self) -> int:
        """Whole batches in an epoch; what is left over is not trained on in this one."""
        whole = len(self.samples) // self.size
        return whole if self.limit is None else min(whole, self.limit)

    def training(
        self, epoch: int, prepare: Callable[[Batch], tuple[Tensor, Tensor]], start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on, in the order of this epoch."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(len(self.samples), generator=generator)
        own = self.size // self.processes
        first = self.process * own
        places = [order[step * self.size + first :][:own] for step in range(self.steps)]
        seeds = [mixed_seed(self.seed, epoch, step, self.process) for step in range(self.steps)]
        yield from self._loaded(_Batches(self.samples, places, seeds, prepare), start)

    def evaluation(self, prepare: Callable[[Batch], tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples, each once: every process gets as many batches of one size, which are filled up with samples
        whose label is not counted."""
        total = len(self.samples)
        steps = -(-total // self.size)
        if self.limit is not None:
            steps = min(steps, self.limit)
        own = self.size // self.processes
        every = torch.arange(steps * self.size)
        places = [every[step * self.size + self.process * own :][:own] for step in range(steps)]
        whole = [place.remainder(total) for place in places]
        loaded = self._loaded(_Batches(self.samples, whole, None, prepare), 0)
        for place, (inputs, labels) in zip(places, loaded, strict=True):
            yield inputs, labels.where(place < total, torch.tensor(IGNORED))

    def _loaded(self, batches: _Batches, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = range(start, len(batches.places))
        if not self.workers:
            yield from map(batches.__getitem__, numbers)
            return
        # With a generator of its own: otherwise it would take numbers from the global one.
        generator = torch.Generator().manual_seed(0)
        options: dict[str, Any] = {"num_workers": self.workers, "generator": generator}
        yield from DataLoader(batches, batch_size=None, sampler=list(numbers), **options)


@dataclass(frozen=True)
class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batches by number. What is drawn for one is drawn with its seed, and leaves the global generator as it was."""

    samples: Samples
    places: list[Tensor]
    seeds: list[int] | None
    prepare: Callable[[Batch], tuple[Tensor, Tensor]]

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.seeds is None:
            return self.prepare(self.samples.take(self.places[number]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds[number])
            return self.prepare(self.samples.take(self.places[number]))
