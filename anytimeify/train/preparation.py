"""From samples as they are stored to a batch as a network takes it.

Samples are made to fit the network's input:

- images of another size are resized, with bilinear interpolation; of pictures in files, which are of any size, the
  middle is taken, at the larger scale that evaluation on ImageNet uses;
- grey images are given to all channels of a network that takes three, and colour images become grey for one that takes
  one;
- series of numbers are stretched to the network's length; a network of images gets them as a grey image of channels
  and time;
- for a network that takes plain rows of numbers samples are flattened.

Bytes become numbers from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.train.augmentation import NORMALISE, WHITEN, mixers, resizes, steps
from anytimeify.train.data.samples import Batch, Data
from anytimeify.train.training import Training

__all__ = ["Preparation"]

_MIDDLE = 256 / 224  # how much larger than the network's input a picture is before its middle is taken


class Preparation:
    """What is done with batches of some data on their way to a network whose samples have a `shape`."""

    def __init__(self, data: Data, shape: Sequence[int], training: Training) -> None:
        self.shape = tuple(shape)
        self.steps = steps(training.augmentation, self.shape[1:])
        self.crops = resizes(training.augmentation)
        self.mixers = mixers(training.mixup, training.cutmix, len(data.classes))
        self.whiten = WHITEN in training.augmentation
        self.scales: tuple[Tensor, Tensor] | None = None
        if NORMALISE in training.augmentation:
            known = data.measured()
            self.scales = self._channels(known.mean), self._channels(known.std)

    def training(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch to train on, drawn with the global generator of the CPU."""
        inputs, labels = batch
        given = inputs if self.crops else self._fitted(inputs)
        if self.steps:
            given = [self._stepped(one) for one in given]
        ready = self._numbers(self._fitted(given))
        if not self.mixers:
            return ready, labels
        if ready.ndim != 4:
            raise ArgumentValueError(f"mixup and cutmix are for images; samples have the shape {self.shape}")
        mixed = self.mixers[int(torch.randint(len(self.mixers), ()))](ready, labels)
        return mixed[0], mixed[1]

    def evaluation(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch to evaluate."""
        inputs, labels = batch
        return self._numbers(self._fitted(inputs)), labels

    def _stepped(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image

    def _fitted(self, inputs: Tensor | list[Tensor]) -> Tensor:
        if isinstance(inputs, Tensor):
            return _fit(inputs, self.shape)
        return torch.cat([_fit(one[None], self.shape, middle=not self.crops) for one in inputs])

    def _numbers(self, batch: Tensor) -> Tensor:
        numbers = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
        if self.scales is not None:
            numbers = (numbers - self.scales[0]) / self.scales[1]
        if self.whiten:
            flat = numbers.flatten(1)
            least = 1 / math.sqrt(flat.shape[1])  # as TensorFlow has it
            std = flat.std(dim=1, correction=0).clamp(min=least)
            numbers = ((flat - flat.mean(dim=1, keepdim=True)) / std[:, None]).view_as(numbers)
        return numbers

    def _channels(self, values: Sequence[float]) -> Tensor:
        """A value for each channel of the network's input, in a shape that goes with a sample's."""
        own = torch.tensor(values)
        channels = self.shape[0] if len(self.shape) > 1 else 1
        if len(own) != channels:
            own = own.mean()[None].expand(channels)
        return own.reshape(-1, *(1 for _ in self.shape[1:]))


def _fit(batch: Tensor, shape: tuple[int, ...], middle: bool = False) -> Tensor:
    """A batch of samples of one shape as samples of another."""
    sample = tuple(batch.shape[1:])
    if sample == shape:
        return batch
    if len(shape) == 1 and math.prod(sample) == shape[0]:
        return batch.flatten(1)
    if len(shape) == 3 and len(sample) == 2:  # a series for a network of images
        batch, sample = batch[:, None], (1, *sample)
    if len(shape) != len(sample) or len(shape) not in (2, 3):
        raise ArgumentValueError(f"samples of the shape {sample} cannot be made to fit a network that takes {shape}")
    if sample[0] != shape[0]:
        if sample[0] != 1 and shape[0] != 1:
            raise ArgumentValueError(f"samples have {sample[0]} channels, and the network takes {shape[0]}")
        # A mean of bytes is rounded to a byte.
        batch = batch.expand(-1, shape[0], *sample[1:]) if sample[0] == 1 else _grey(batch)
    if sample[1:] == shape[1:]:
        return batch
    if len(shape) == 2:
        return F.interpolate(batch.float(), shape[1], mode="linear", align_corners=False)
    return _middle(batch, shape[1:]) if middle else _resized(batch, shape[1:])


def _grey(batch: Tensor) -> Tensor:
    mean = batch.float().mean(dim=1, keepdim=True)
    return mean.round().to(torch.uint8) if batch.dtype == torch.uint8 else mean


def _resized(batch: Tensor, size: Sequence[int]) -> Tensor:
    resized = F.interpolate(batch.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8) if batch.dtype == torch.uint8 else resized


def _middle(batch: Tensor, size: Sequence[int]) -> Tensor:
    scale = max(_MIDDLE * wanted / given for wanted, given in zip(size, batch.shape[2:], strict=True))
    height, width = (max(wanted, round(scale * given)) for wanted, given in zip(size, batch.shape[2:], strict=True))
    large = _resized(batch, (height, width))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return large[:, :, top : top + size[0], left : left + size[1]]
