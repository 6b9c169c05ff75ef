"""`stages.json` as plain data: its format, and the checksums of all files in its folder. Needs no torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anytimeify.errors import AnytimeWarning, ArtifactError
from anytimeify.io import checksums

__all__ = ["BEFORE", "FORMAT", "MANIFEST", "check_file", "parse", "seal", "stage_file"]

MANIFEST = "stages.json"
FORMAT = 2  # raised when a folder can no longer be read by the code before
BEFORE = 1  # without checksums


def stage_file(index: int, format: str) -> str:
    """The name of a stage's file. Stages are numbered like the exits."""
    return f"stage-{index}.{format}"


def seal(document: Mapping[str, Any]) -> str:
    """The text of a file that says `document`, and a checksum of that: SHA-256 over it as JSON with sorted keys and no
    spaces."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return json.dumps({**rest, "checksum": checksums.of_data(rest)}, indent=2) + "\n"


def parse(text: str, name: str) -> Any:
    """The document of a text. `ArtifactError`, which calls the file `name`, where it is damaged or of another
    format."""
    try:
        document = json.loads(text)
        found = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{name} does not describe stages, or is damaged ({error!r})") from error
    if type(found) is not int or found not in (BEFORE, FORMAT):
        raise ArtifactError(
            f"{name} has format {found!r}, this version of anytimeify reads format {FORMAT} and {BEFORE}: load it "
            "with the version that wrote it, or a newer one"
        )
    if found == BEFORE:
        warnings.warn(
            f"{name} was written by an earlier version, without checksums: whether it and the stages are as they were "
            "written cannot be known. Export them again",
            AnytimeWarning,
            stacklevel=4,  # who calls load
        )
    elif json.loads(seal(document))["checksum"] != document.get("checksum"):
        raise ArtifactError(f"{name} is damaged: it does not have the checksum that was written")
    return document


def check_file(written: Mapping[str, str] | None, file: Path) -> None:
    """`ArtifactError` where a file, or one that it refers to, is not as it was written. `written`: the checksums by
    name; None where there are none."""
    for name, checksum in (written or {}).items():
        if name != file.name and not name.startswith(f"{file.name}."):  # NAME.data holds large tensors of ONNX
            continue
        part = file.with_name(name)
        if Path(name).name != name or not part.is_file():
            raise ArtifactError(f"'{part}' is missing: the folder is not whole")
        if checksums.of_file(part) != checksum:
            raise ArtifactError(f"'{part}' is damaged: it does not have the checksum that was written")
    if written is not None and file.name not in written:
        raise ArtifactError(f"'{file}' is none of the files that were written: there is no checksum of it")
