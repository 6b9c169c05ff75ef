"""The zip archives that torch writes: members that lie there uncompressed, each once, each in its own bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import PurePosixPath
from typing import IO, Any, Self

import torch
from torch import Tensor

from anytimeify.capture.pt2.checks import RefusedError, shown

__all__ = ["Archive"]

_CHUNK = 1 << 24  # bytes that are read at a time


class Archive:
    """Reads an archive of which every member's name is in `allowed`, a pattern of what follows the root folder.

    Raises `RefusedError` for a member that is not, `zipfile.BadZipFile` where the archive is damaged. A member that is
    compressed, or lies in the bytes of another, could be far larger than the file; torch writes neither.
    """

    def __init__(self, file: IO[bytes], allowed: re.Pattern[str]) -> None:
        self._zip = zipfile.ZipFile(file)
        file.seek(0, 2)
        self._size = file.tell()
        self._members: dict[str, zipfile.ZipInfo] = {}
        roots = {entry.filename.partition("/")[0] for entry in self._zip.infolist()}
        if len(roots) != 1:
            raise RefusedError("", f"expected one folder that holds all members, got {len(roots)}")
        for entry in self._zip.infolist():
            self._add(entry, allowed)
        if sum(entry.file_size for entry in self._members.values()) > self._size:
            raise RefusedError("", "members lie in each other's bytes")

    def _add(self, entry: zipfile.ZipInfo, allowed: re.Pattern[str]) -> None:
        where, name = f"member {shown(entry.filename)}", entry.filename.partition("/")[2]
        if not allowed.fullmatch(name) or ".." in PurePosixPath(entry.filename).parts:
            raise RefusedError(where, "is of no kind that is read")
        if name in self._members:
            raise RefusedError(where, "is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise RefusedError(where, "is compressed, which torch never writes")
        if entry.flag_bits & 0x1:
            raise RefusedError(where, "is encrypted")
        self._members[name] = entry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._zip.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._entry(name).file_size

    def read(self, name: str) -> bytes:
        """A member, its checksum compared."""
        return self._zip.read(self._entry(name))

    def tensor(self, name: str) -> Tensor:
        """A member as bytes in memory of torch's own, aligned as torch's is."""
        size = self.size(name)
        result = torch.empty(size, dtype=torch.uint8)
        memory, position = result.numpy().data, 0
        with self._zip.open(self._entry(name)) as stream:
            while chunk := stream.read(min(size - position, _CHUNK)):  # to the end, where the checksum is compared
                memory[position : position + len(chunk)] = chunk
                position += len(chunk)
        if position < size:
            raise zipfile.BadZipFile(f"'{name}' is cut off")
        return result

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise RefusedError("", f"has no member '{name}'")
        return self._members[name]
