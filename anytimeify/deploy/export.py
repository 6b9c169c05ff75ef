"""`net.export`: one file that holds several levels. A container that writes such files is one row of `FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from anytimeify.deploy.executorch_program import write_executorch
from anytimeify.deploy.levels import Levels
from anytimeify.deploy.onnx_switch import write_onnx
from anytimeify.deploy.pt2_archive import write_pt2
from anytimeify.errors import ArgumentError
from anytimeify.io.files import new_file
from anytimeify.storage.export import quiet, require

__all__ = ["FORMATS", "STAGED", "export"]

FORMATS: Mapping[str, Callable[[Levels, Path, str], None]] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "executorch": write_executorch,
}
"""What writes the levels to a file; the last argument is what errors call it."""

STAGED = "staged"
"""The other format, a folder of stages, which `anytimeify.early_exit` writes."""


def export(levels: Levels, path: str | os.PathLike[str], format: str, *, force: bool = False) -> None:
    """Writes one file, whole or not at all, after every level of it was compared with its extract.

    Raises `ArgumentError` for another format, `ArtifactError` where the file exists (unless `force`) or cannot be
    written, `CaptureError` where torch cannot export a level, `VerificationError` where the file computes something
    else, `MissingExtraError` where a package is missing."""
    if format not in FORMATS:
        raise ArgumentError(f"format={format!r}: expected one of {', '.join([*FORMATS, STAGED])}")
    require(format)
    with new_file(path, replace=force) as temporary, quiet():
        FORMATS[format](levels, temporary, str(path))
