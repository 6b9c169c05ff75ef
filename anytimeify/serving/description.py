"""What a file of several levels says of itself: a JSON document, `anytimeify` in its metadata.

    {"format": 1,
     "scheme": "nested-channels{widths=0.5,1}",
     "batch": [1, null],
     "levels": [{"name": "width 0.5", "number": 0.5, "macs": 9, "params": 9, "activation_bytes": 9, "sha256": "..."}],
     "versions": {"anytimeify": "0.1.0", "torch": "2.13.0"}}

Levels stand in the order of their numbers in the file: the cheapest is 0. `sha256` covers the values of all tensors of
the level, under the names that its extract has for them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from anytimeify.errors import ArtifactError

__all__ = ["FORMAT", "KEY", "Description", "ServedLevel", "read_batch", "read_description", "read_level"]

FORMAT = 1
KEY = "anytimeify"


@dataclass(frozen=True)
class ServedLevel:
    """One of the networks that are served; 0 is the cheapest. `number`: its width, say, where it has one; `macs`: the
    multiply-accumulates of one sample."""

    index: int
    name: str
    number: float | None
    macs: int


@dataclass(frozen=True)
class Description:
    """What is served. `batch`: the smallest and the largest batch (None: no largest); None where its size is fixed."""

    scheme: str
    levels: tuple[ServedLevel, ...]
    batch: tuple[int, int | None] | None


def read_description(text: str, path: object) -> Description:
    """The document of a file. `ArtifactError` where it is damaged, or of a version to come."""
    try:
        document: Any = json.loads(text)
        version = document["format"]
        if type(version) is int and version > FORMAT:
            raise ArtifactError(f"{path} was written by a newer version of anytimeify, in format {version}: update it")
        levels = tuple(read_level(place, row) for place, row in enumerate(document["levels"]))
        if not levels:
            raise ValueError("no levels")
        return Description(str(document["scheme"]), levels, read_batch(document["batch"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged: what it says of its levels cannot be read ({type(error).__name__}: {error}). Write it "
            "again with net.export"
        ) from error


def read_level(place: int, row: Any) -> ServedLevel:
    """A level as a document describes it; one that was written before there were numbers has none."""
    number = row.get("number")
    return ServedLevel(place, str(row["name"]), None if number is None else float(number), int(row["macs"]))


def read_batch(sizes: Any) -> tuple[int, int | None] | None:
    """The smallest and the largest batch, as a document has them. `ValueError` where no batch is like that."""
    if sizes is None:
        return None
    least, most = sizes
    found = int(least), None if most is None else int(most)
    if found[0] < 1 or (found[1] is not None and found[1] < found[0]):
        raise ValueError(f"no batch has {least} to {most} samples")
    return found
