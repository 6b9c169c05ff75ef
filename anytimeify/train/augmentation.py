"""Steps of augmentation by name, which recipes hold, as transforms of torchvision.

Of one image (channels, height, width), of bytes; drawn anew for every sample:

    "pad 4 and crop"                    zeros around it, and a crop of its own size
    "pad 4 with reflections and crop"
    "random resized crop 224"           of 8 % to all of its area; a size may follow the area: "random resized crop 224
                                        from 0.2"
    "flip"                              left and right, in half of the cases
    "rotate 10"                         by up to so many degrees
    "colour jitter 0.4"                 brightness, contrast and saturation
    "trivial augment", "rand augment"
    "erase 0.25"                        a rectangle, with this probability

Of a whole batch, in evaluation too:

    "normalise"                         with the mean and the deviation of the channels of the training samples
    "whiten each image"                 with its own mean and deviation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from anytimeify.errors import ArgumentValueError, MissingExtraError

__all__ = ["NORMALISE", "WHITEN", "Step", "mixers", "resizes", "steps"]

Step: TypeAlias = Callable[[Tensor], Tensor]

NORMALISE, WHITEN = "normalise", "whiten each image"
_NUMBER = r"(\d+(?:\.\d+)?)"
# Name, and what makes it of the transforms of torchvision, the size of a sample, and the numbers in the name.
_TABLE: tuple[tuple[str, Callable[..., Any]], ...] = (
    (rf"pad {_NUMBER} and crop", lambda v2, size, pad: v2.RandomCrop(size, padding=int(pad))),
    (
        rf"pad {_NUMBER} with reflections and crop",
        lambda v2, size, pad: v2.RandomCrop(size, padding=int(pad), padding_mode="reflect"),
    ),
    (
        rf"random resized crop {_NUMBER}(?: from {_NUMBER})?",
        lambda v2, size, side, least: v2.RandomResizedCrop(
            int(side), scale=(float(least or 0.08), 1.0), antialias=True
        ),
    ),
    ("flip", lambda v2, size: v2.RandomHorizontalFlip()),
    (rf"rotate {_NUMBER}", lambda v2, size, angle: v2.RandomRotation(float(angle))),
    (
        rf"colour jitter {_NUMBER}",
        lambda v2, size, share: v2.ColorJitter(brightness=float(share), contrast=float(share), saturation=float(share)),
    ),
    ("trivial augment", lambda v2, size: v2.TrivialAugmentWide()),
    ("rand augment", lambda v2, size: v2.RandAugment()),
    (rf"erase {_NUMBER}", lambda v2, size, share: v2.RandomErasing(p=float(share))),
)


def steps(names: Sequence[str], size: Sequence[int]) -> list[Step]:
    """The random steps among the names, for images of a size. `ArgumentValueError` for names that are none."""
    found = []
    for name in names:
        if name in (NORMALISE, WHITEN):
            continue
        made = [(make, match) for pattern, make in _TABLE if (match := re.fullmatch(pattern, name))]
        if not made:
            known = ", ".join(repr(pattern.replace(_NUMBER, "N").partition("(")[0]) for pattern, _ in _TABLE)
            raise ArgumentValueError(
                f"augmentation: {name!r} is no step; there are {known}, {NORMALISE!r} and {WHITEN!r}"
            )
        ((make, match),) = made
        if len(size) != 2:
            raise ArgumentValueError(f"augmentation: {name!r} is for images, and samples have the shape {tuple(size)}")
        found.append(make(_transforms(name), tuple(size), *match.groups()))
    return found


def resizes(names: Sequence[str]) -> bool:
    """Whether the steps make images of one size of images of any."""
    return any(name.startswith("random resized crop") for name in names)


def mixers(mixup: float, cutmix: float, classes: int) -> list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """What mixes the samples of a batch, of which every step draws one."""
    found = []
    if mixup:
        found.append(_transforms("mixup").MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        found.append(_transforms("cutmix").CutMix(alpha=cutmix, num_classes=classes))
    return found


def _transforms(name: str) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("torchvision", "train", f"augmentation ({name!r})") from error
    return v2
