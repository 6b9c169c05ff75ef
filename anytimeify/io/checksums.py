"""Checksums of what files hold: SHA-256 over everything that a reader takes from them, types and shapes included.

They tell that a file is as it was written. They do not tell by whom: whoever writes a file writes its checksums.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # readers of files that need no torch import this too
    from torch import Tensor

__all__ = ["of_data", "of_file", "of_tensor", "of_text"]


def of_text(text: str) -> str:
    """Of a text. Half a surrogate, which JSON may spell and no file holds, counts as it is."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_data(data: Any) -> str:
    """Of plain data: however JSON writes them down, the order of keys and the spaces between."""
    return of_text(json.dumps(data, sort_keys=True, separators=(",", ":")))


def of_file(path: Path) -> str:
    """Of all bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_tensor(tensor: Tensor) -> str:
    """Of a contiguous tensor on the CPU: its type, its shape and its values, bit for bit."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
