"""`imagefolder:DIR`: pictures in files, a folder a class.

`DIR/train/CLASS/*.jpg` and `DIR/test/CLASS/*.jpg` (or `val` in place of `test`); without these two folders,
`DIR/CLASS/*.jpg`, of which 20 % of every class, drawn once and for all, are to test with. Classes are numbered in the
order of their names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.train.data.samples import Batch, Data, DataKind, Samples, Some, split_by_class

__all__ = ["KIND"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm")
# Of ImageNet, which networks for pictures are mostly trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pictures:
    """Files and the classes of what they show; read when they are asked for."""

    files: tuple[Path, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def take(self, places: Tensor) -> Batch:
        images = [_read(self.files[place]) for place in places.tolist()]
        return images, self.labels[places]


def load(rest: str) -> Data:
    """The pictures of a folder."""
    if not rest or not Path(rest).is_dir():
        raise ArtifactError(f"'imagefolder:{rest}': expected a folder with a folder for every class")
    _pillow()
    folder = Path(rest)
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if (folder / "train").is_dir() and tests:
        classes = _classes(folder / "train")
        train: Samples = _pictures(folder / "train", classes)
        test: Samples = _pictures(tests[0], classes)
    else:
        classes = _classes(folder)
        every = _pictures(folder, classes)
        train, test = (Some(every, places) for places in split_by_class(every.labels, 0.2))
    return Data(f"imagefolder {folder.name}", train, test, classes, None, MEAN, STD)


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if not names:
        raise ArtifactError(f"'{folder}' has no folders: expected one for every class")
    return names


def _pictures(folder: Path, classes: tuple[str, ...]) -> Pictures:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise ArtifactError(f"'{folder / unknown[0]}' is a class that is not among those to train on")
    found = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise ArtifactError(f"'{folder}' holds no pictures ({', '.join(SUFFIXES)})")
    return Pictures(tuple(path for path, _ in found), torch.tensor([number for _, number in found]))


def _read(path: Path) -> Tensor:
    """(3, height, width), bytes."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{path} is no picture that can be read: {error}") from error


def _pillow() -> None:
    try:
        import PIL.Image  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MissingExtraError("pillow", "train", "the data 'imagefolder'") from error


KIND = DataKind("imagefolder:DIR", "pictures, a folder a class", load, "imagefolder")
