"""What the binary files of CIFAR have in common: records of one or two bytes of labels and 3,072 bytes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytimeify.errors import ArtifactError
from anytimeify.io.files import regular_file

__all__ = ["folder_of", "names_in", "records"]

PIXELS = 3 * 32 * 32


def folder_of(kind: str, text: str, inner: str, file: str) -> Path:
    """The folder with the files: the one that is named, or the one in it that unpacking the archive makes."""
    if not text:
        raise ArtifactError(f"'{kind}' needs the folder with the binary version of the data: {kind}:DIR")
    for folder in (Path(text), Path(text, inner)):
        if (folder / file).exists():
            return folder
    raise ArtifactError(f"'{text}' holds no {file}: expected the binary version of the data, unpacked ({inner})")


def records(paths: Sequence[Path], classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N, number of `classes`) of all files, which have so many classes each.

    Raises `ArtifactError` that names the file, and the offset of the first byte that cannot be right."""
    size = len(classes) + PIXELS
    found: list[Tensor] = []
    for path in paths:
        content = np.fromfile(regular_file(path), dtype=np.uint8)
        whole = len(content) // size
        if whole * size != len(content) or not whole:
            raise ArtifactError(
                f"{path} is damaged: it ends at offset {len(content)}, within record {whole}, which takes {size} bytes "
                f"from offset {whole * size} on"
            )
        table = torch.from_numpy(content).reshape(whole, size)
        wrong = (table[:, : len(classes)].long() >= torch.tensor(classes)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ArtifactError(
                f"{path} is damaged: the label at offset {row * size + column} is {int(table[row, column])}, and there "
                f"are {classes[column]} classes"
            )
        found.append(table)
    every = torch.cat(found)
    return every[:, len(classes) :].reshape(-1, 3, 32, 32).contiguous(), every[:, : len(classes)].long()


def names_in(path: Path, count: int) -> tuple[str, ...]:
    """The names of the classes, a line each; their numbers where the file is missing."""
    if not path.exists():
        return tuple(str(number) for number in range(count))
    names = [line.strip() for line in regular_file(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != count:
        raise ArtifactError(f"{path} is damaged: it has {len(names)} names, and there are {count} classes")
    return tuple(names)
