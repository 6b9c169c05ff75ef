"""`cifar10:DIR`: CIFAR-10 in its binary version (`cifar-10-binary.tar.gz`, unpacked; Krizhevsky 2009)."""

from __future__ import annotations

from anytimeify.train.data.cifar import folder_of, names_in, records
from anytimeify.train.data.samples import Data, DataKind, Held

__all__ = ["KIND"]

FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def load(rest: str) -> Data:
    """Records of a label and an image; files of training images that are missing are an error."""
    folder = folder_of("cifar10", rest, "cifar-10-batches-bin", FILES[0])
    parts = []
    for names in (FILES, ("test_batch.bin",)):
        images, labels = records([folder / name for name in names], (10,))
        parts.append(Held(images, labels[:, 0]))
    return Data("cifar10", parts[0], parts[1], names_in(folder / "batches.meta.txt", 10))


KIND = DataKind("cifar10:DIR", "CIFAR-10, the binary version", load, "cifar10")
