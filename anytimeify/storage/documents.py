"""Files of tensors with a description: safetensors, whose header holds JSON and a checksum of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from anytimeify.errors import ArtifactError

__all__ = ["CHECKSUM", "crc_of_text", "crc_of_values", "open_document"]

CHECKSUM = "anytimeify.checksum"  # of the description, in the header


def open_document(
    source: Path, key: str, *, kind: str, missing: str, checksum: Callable[[str, Any], str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description in a file, and its tensors.

    `key`: where the header has the description. `kind`, `missing`: what is said of a file that is none, and of other
    safetensors. `checksum`: that of the text, which may depend on what it says. Raises `ArtifactError` for what is no
    such file, or is damaged.
    """
    try:
        with safetensors.safe_open(str(source), framework="pt") as file:
            metadata = file.metadata() or {}
            if key not in metadata:
                raise ArtifactError(f"{source} holds {missing}")
            # In memory of their own, aligned as torch's is: it decides which kernels run, and so how sums are rounded.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
        document = json.loads(metadata[key])
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{source} is {kind}, or is damaged ({error})") from error
    if not isinstance(document, dict) or metadata.get(CHECKSUM) != checksum(metadata[key], document):
        raise ArtifactError(f"{source} is damaged: its description does not have the checksum that was written")
    return document, tensors


def crc_of_text(text: str) -> str:
    """The checksum of a description in the older formats."""
    return str(zlib.crc32(text.encode("utf-8", "surrogatepass")))


def crc_of_values(tensor: Tensor) -> int:
    """That of a tensor's elements."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
