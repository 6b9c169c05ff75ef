"""`digits`: 1,797 images of handwritten digits, 8x8, grey, that scikit-learn ships (UCI, Alpaydin and Kaynak 1998).

20 % of every class, drawn once and for all, are to test with.
"""

from __future__ import annotations

import torch

from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.train.data.samples import Data, DataKind, Held, names_of, split_by_class

__all__ = ["KIND"]


def load(rest: str) -> Data:
    """The digits."""
    if rest:
        raise ArtifactError(f"'digits:{rest}': digits have no options")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train", "the data 'digits'") from error
    given = load_digits()
    # 0 to 16 become bytes.
    images = (torch.from_numpy(given.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(given.target).long()
    train, test = split_by_class(labels, 0.2)
    return Data("digits", Held(images[train], labels[train]), Held(images[test], labels[test]), names_of(10))


KIND = DataKind("digits", "1,797 digits, 8x8, grey", load, "digits")
