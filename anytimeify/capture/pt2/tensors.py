"""Tensors as an archive holds them: bytes of a storage, and views into them that stay inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.pt2.archive import Archive
from anytimeify.capture.pt2.checks import RefusedError

__all__ = ["DTYPES", "read_tensors", "view"]

# torch's numbers for types of elements.
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}

# An expanded tensor has more elements than its storage, and whoever copies it needs memory for all of them.
_LARGEST_EXPANSION = 1 << 28


def read_tensors(archive: Archive, folder: str, config: dict[str, Any], *, parameters: bool) -> dict[str, Tensor]:
    """The tensors of a table of payloads that was checked, by name; those in one member share its memory. `parameters`:
    whether there may be some among them, as there are among weights, but not among constants.

    Raises `RefusedError` for a view that leaves its storage, and for a tensor without values.
    """
    storages: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for name, payload in config.items():
        path, meta, where = f"{folder}/{payload['path_name']}", payload["tensor_meta"], f"tensor '{name}'"
        sizes = [one["as_int"] for one in meta["sizes"]]
        strides = [one["as_int"] for one in meta["strides"]]
        dtype, device = DTYPES[meta["dtype"]], _device(meta["device"])
        if device.type == "meta":
            tensor = torch.empty_strided(sizes, strides, dtype=dtype, device=device)
        else:
            if path not in storages:
                storages[path] = archive.tensor(path).to(device)
            tensor = view(storages[path], dtype, sizes, strides, meta["storage_offset"]["as_int"], where)
        result[name] = _leaf(tensor, parameters and payload["is_param"], meta["requires_grad"])
    return result


def view(
    storage: Tensor, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int], offset: int, where: str
) -> Tensor:
    """The bytes `storage` as elements of a type, seen with sizes, strides and an offset; `RefusedError` outside."""
    if len(sizes) != len(strides):
        raise RefusedError(where, f"has {len(sizes)} sizes and {len(strides)} strides")
    if storage.numel() % dtype.itemsize:
        raise RefusedError(where, f"{storage.numel()} bytes are no whole number of elements of {dtype}")
    if dtype is torch.bool and storage.numel() and int(storage.max()) > 1:
        raise RefusedError(where, "has truth values that are neither true nor false")
    flat = storage.view(dtype)
    empty = 0 in sizes
    last = offset if empty else offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if last >= flat.numel() + empty:
        raise RefusedError(
            where, f"sizes {list(sizes)} with strides {list(strides)} go beyond its {flat.numel()} elements"
        )
    elements = 1
    for size in sizes:
        elements *= size
    if elements > max(flat.numel(), _LARGEST_EXPANSION):
        raise RefusedError(where, f"sizes {list(sizes)} expand {flat.numel()} elements to more than is read")
    return flat.as_strided(sizes, strides, offset)


def _device(description: dict[str, Any]) -> torch.device:
    index = description.get("index")
    return torch.device(description["type"]) if index is None else torch.device(description["type"], index)


def _leaf(tensor: Tensor, parameter: bool, requires_grad: bool) -> Tensor:
    if parameter:
        return nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad) if requires_grad else tensor
