"""What a source of data gives: samples to train on and to test with, and their classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.taxonomy import Taxonomy

__all__ = [
    "Batch",
    "Data",
    "DataKind",
    "Held",
    "Items",
    "Samples",
    "Some",
    "names_of",
    "parse_options",
    "split_by_class",
]

# Inputs and labels. Inputs of one shape are one tensor, images of several sizes a list. Images are (channels, height,
# width) of bytes; floating numbers are taken as they are.
Batch: TypeAlias = tuple[Tensor | list[Tensor], Tensor]


@runtime_checkable
class Samples(Protocol):
    """Samples that are got by their numbers."""

    def __len__(self) -> int: ...

    def take(self, places: Tensor) -> Batch:
        """The samples of these numbers, of shape (N,), and their labels: classes of type int64."""
        ...


@dataclass(frozen=True)
class Held:
    """Samples in memory: `inputs` (N, ...) and `labels` (N,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Tensor) -> Batch:
        return self.inputs[places], self.labels[places]


@dataclass(frozen=True)
class Items:
    """A dataset of torch, whose items are inputs and labels."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, places: Tensor) -> Batch:
        inputs, labels = zip(*(self.dataset[int(place)][:2] for place in places), strict=True)
        tensors = [torch.as_tensor(one) for one in inputs]
        alike = all(one.shape == tensors[0].shape for one in tensors)
        return torch.stack(tensors) if alike else tensors, torch.tensor([int(label) for label in labels])


@dataclass(frozen=True)
class Some:
    """Those of `samples` that have the numbers `places`."""

    samples: Samples
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def take(self, places: Tensor) -> Batch:
        return self.samples.take(self.places[places])


@dataclass(frozen=True)
class Data:
    """What a network is trained on and tested with.

    Fields
        name: as it was asked for.
        train, test: samples.
        classes: the names of the classes, in the order of their numbers.
        taxonomy: where the data have labels of several granularities; labels of samples are the finest.
        mean, std: of every channel of the training samples, of bytes as numbers from 0 to 1; by default they are
            measured, on up to 10,000 samples.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    taxonomy: Taxonomy | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for part, samples in (("train", self.train), ("test", self.test)):
            if not isinstance(samples, Samples):
                raise ArgumentError(f"{self.name}: {part} is {type(samples)}: expected samples, such as Held(...)")
            if not len(samples):
                raise ArgumentValueError(f"{self.name}: there is no sample to {part} on")

    def measured(self) -> Data:
        """The same with mean and deviation of the channels."""
        if self.mean:
            return self
        given, _ = self.train.take(torch.arange(0, len(self.train), math.ceil(len(self.train) / 10_000)))
        tensors = list(given) if isinstance(given, Tensor) else given
        scale = 1 / 255 if tensors[0].dtype == torch.uint8 else 1.0
        # The first dimension of a sample is its channels; what is a plain row of numbers has one.
        rows = [one.double().reshape(len(one) if one.ndim > 1 else 1, -1) * scale for one in tensors]
        every = torch.cat(rows, dim=1)
        std = every.std(dim=1, correction=0)
        return replace(
            self, mean=tuple(every.mean(dim=1).tolist()), std=tuple(std.where(std > 0, torch.ones_like(std)).tolist())
        )

    def held_out(self, share: float, seed: int) -> Data:
        """The same with a share of the training samples in place of the test samples, always the same ones for a
        seed."""
        if not share:
            return self
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        count = max(1, round(share * len(order)))
        kept, apart = order[count:].sort().values, order[:count].sort().values
        return replace(self, train=Some(self.train, kept), test=Some(self.train, apart))


@dataclass(frozen=True)
class DataKind:
    """One source of data: what a file here calls its `KIND`. `load` gets what follows the prefix."""

    example: str  # as help and errors show it
    about: str
    load: Callable[[str], Data]
    prefix: str = ""  # "cifar10" for "cifar10:DIR", or for the name alone; none for factories

    def matches(self, spec: str) -> bool:
        return spec == self.prefix or spec.startswith(f"{self.prefix}:")


def split_by_class(labels: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers of samples to train on and to test with: of every class the share to test with, drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    train: list[Tensor] = []
    test: list[Tensor] = []
    for label in labels.unique().tolist():
        own = torch.nonzero(labels == label).flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        count = round(share * len(own))
        test.append(own[:count])
        train.append(own[count:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def names_of(count: int) -> tuple[str, ...]:
    """Classes without names are called by their numbers."""
    return tuple(str(number) for number in range(count))


def parse_options(spec: str, text: str, known: Sequence[str]) -> dict[str, float]:
    """`a=1,b=2` after a colon."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in known or not math.isfinite(number):
            raise ArgumentValueError(f"'{spec}': {part!r} is no option; there are {', '.join(known)}, each NAME=NUMBER")
        found[name] = number
    return found
