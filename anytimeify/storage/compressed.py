"""Weights of sparse levels as small files: of every tensor the entries that are not zero, and where they are.

`save_compressed(net.extract(0), path)` writes safetensors. Each tensor takes the smallest of three forms: dense, as it
is; its values with one bit for every place; its values with their places as integers, unless next to nothing is left of
a large tensor, for a file may not ask for any amount of memory. What is read back is the same bit for bit. No pickle,
no code: a description in the header says the forms, and checksums of what is read are compared.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify.errors import ArtifactError
from anytimeify.io.files import new_file, reading, regular_file
from anytimeify.storage.documents import CHECKSUM, crc_of_text, crc_of_values, open_document
from anytimeify.storage.graphs import dtype_of

__all__ = ["FORMAT", "load_compressed", "save_compressed"]

FORMAT = 1  # raised when a file can no longer be read by the code before
_MOST, _SMALL = 1024, 1 << 16  # how much larger a tensor may be than what is stored of it, unless it has few bytes
_KEY = "anytimeify.compressed"


def save_compressed(
    weights: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], *, replace: bool = False
) -> None:
    """Writes a module's state dict, or tensors by name, into one file, whole or not at all.

    Raises `ArtifactError` where the file exists, unless `replace`, or nothing can be written.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    stored: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, tensor in state.items():
        data = tensor.detach().cpu().contiguous()
        form, parts = _smallest(data)
        for part, value in parts.items():
            key = _key(name, part)
            if key in stored or (key != name and key in state):
                raise ArtifactError(f"the names of the tensors leave no name for the parts of {name}: {key} is taken")
            stored[key] = value
        described[name] = {
            "form": form,
            "shape": list(data.shape),
            "dtype": str(data.dtype).removeprefix("torch."),
            "checksum": crc_of_values(data),
        }
    text = json.dumps({"format": FORMAT, "tensors": described}, separators=(",", ":"))
    content = safetensors.torch.save(stored, {_KEY: text, CHECKSUM: crc_of_text(text)})
    with new_file(path, replace=replace) as temporary:
        temporary.write_bytes(content)


def load_compressed(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, whole again, for `module.load_state_dict`.

    Raises `ArtifactError` for what is no whole, readable file of this kind.
    """
    source = regular_file(path)
    with reading(source):
        document, stored = open_document(
            source,
            _KEY,
            kind="no file of compressed weights",
            missing="no compressed weights: save_compressed(...) did not write it",
            checksum=lambda text, _: crc_of_text(text),
        )
        if document.get("format") != FORMAT:
            raise ArtifactError(
                f"{source} has format {document.get('format')!r}, this version of anytimeify reads format {FORMAT}"
            )
        return {name: _whole(name, entry, stored) for name, entry in document["tensors"].items()}


def _key(name: str, part: str) -> str:
    """Where a part of a tensor is: dense ones under their own names, for any reader of such files."""
    return name if part == "dense" else f"{name}:{part}"


# The three forms.


def _smallest(tensor: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The form of a tensor that takes the fewest bytes, and what is stored of it."""
    entries = tensor.numel()
    if entries == 0:
        return "dense", {"dense": tensor.clone()}
    words = tensor.reshape(-1).view(torch.uint8).reshape(entries, -1)
    there = (words != 0).any(1)  # a negative zero is something
    kept = int(there.count_nonzero())
    places = _integers(entries)
    values = kept * tensor.element_size()
    sizes = {
        "dense": entries * tensor.element_size(),
        "bits": values + math.ceil(entries / 8),
        "places": values + kept * places.itemsize,
    }
    if not _plausible(sizes["dense"], sizes["places"]):
        del sizes["places"]
    form = min(sizes, key=sizes.__getitem__)
    if form == "dense":
        return form, {"dense": tensor.clone()}
    if form == "bits":
        where = torch.from_numpy(np.packbits(there.numpy()))
    else:
        where = there.nonzero().squeeze(1).to(places)
    return form, {"values": tensor.reshape(-1)[there], form: where}


def _integers(entries: int) -> torch.dtype:
    """The smallest type that counts the places of a tensor."""
    fitting = (kind for kind in (torch.uint8, torch.int16, torch.int32) if entries - 1 <= torch.iinfo(kind).max)
    return next(fitting, torch.int64)


def _plausible(dense: int, stored: int) -> bool:
    return dense <= max(_SMALL, _MOST * stored)


def _whole(name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Tensor:
    shape, dtype, form = [int(size) for size in entry["shape"]], dtype_of(entry["dtype"]), entry["form"]
    if form == "dense":
        tensor = stored[_key(name, form)]
    elif form in ("bits", "places"):
        values, where = stored[_key(name, "values")], stored[_key(name, form)]
        entries = math.prod(shape)
        if not _plausible(entries * dtype.itemsize, values.nbytes + where.nbytes):
            raise ArtifactError(f"{name} would take {entries * dtype.itemsize} bytes, of which the file holds too few")
        if form == "bits":
            if where.dtype != torch.uint8 or where.numel() != math.ceil(entries / 8):
                raise ArtifactError(f"damaged: the places of {name} are those of another tensor")
            where = torch.from_numpy(np.unpackbits(where.numpy(), count=entries)).nonzero().squeeze(1)
        tensor = torch.zeros(entries, dtype=dtype)
        tensor[where.long()] = values
        tensor = tensor.reshape(shape)
    else:
        raise ArtifactError(f"{name} has the form {form!r}, which this version does not know")
    if list(tensor.shape) != shape or tensor.dtype != dtype or crc_of_values(tensor) != entry["checksum"]:
        raise ArtifactError(f"damaged: {name} is not what was written")
    return tensor
