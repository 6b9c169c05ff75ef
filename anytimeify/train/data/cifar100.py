"""`cifar100:DIR`: CIFAR-100 in its binary version (`cifar-100-binary.tar.gz`, unpacked; Krizhevsky 2009).

Its 20 coarse classes are the taxonomy of the data.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from anytimeify.errors import ArtifactError
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.data.cifar import PIXELS, folder_of, names_in, records
from anytimeify.train.data.samples import Data, DataKind, Held

__all__ = ["KIND"]

COUNTS = (20, 100)  # a record is the coarse label, the fine label and the image


def load(rest: str) -> Data:
    """Records of two labels and an image. Every fine class has to be of one coarse class, in all records."""
    folder = folder_of("cifar100", rest, "cifar-100-binary", "train.bin")
    paths = [folder / "train.bin", folder / "test.bin"]
    (train, labels), (test, test_labels) = (records([path], COUNTS) for path in paths)
    above = [-1] * COUNTS[1]
    for path, both in zip(paths, (labels, test_labels), strict=True):
        _note(above, path, both)
    classes = names_in(folder / "fine_label_names.txt", 100)
    taxonomy = Taxonomy.from_parents(
        [max(0, coarse) for coarse in above],
        granularities=("fine", "coarse"),
        classes=(classes, names_in(folder / "coarse_label_names.txt", 20)),
    )
    return Data("cifar100", Held(train, labels[:, 1]), Held(test, test_labels[:, 1]), classes, taxonomy)


def _note(above: list[int], path: Path, labels: Tensor) -> None:
    for row, (coarse, fine) in enumerate(labels.tolist()):
        if above[fine] not in (-1, coarse):
            raise ArtifactError(
                f"{path} is damaged: the record at offset {row * (2 + PIXELS)} has fine class {fine} in coarse class "
                f"{coarse}, and others have it in {above[fine]}"
            )
        above[fine] = coarse


KIND = DataKind("cifar100:DIR", "CIFAR-100, the binary version, with its coarse labels", load, "cifar100")
