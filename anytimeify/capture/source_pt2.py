"""`model.pt2`: a program saved by `torch.export.save`.

`torch.export.load` unpickles example inputs, unusual tensors and custom objects, which can run code. Here a file is
loaded with tensors and plain values only, unless its author is trusted; its checksums are looked at first.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from anytimeify._torch import quiet_exporter, refuse_code_in_pickles
from anytimeify.capture.source import Source, SourceKind, existing_file
from anytimeify.errors import ArtifactError

__all__ = ["KIND", "load_exported"]

_PICKLED_OBJECT = re.compile(r"(^|/)data/constants/(?!tensor_)(?!.*\.json$)")


def load_exported(path: str | Path, *, trust_pickle: bool = False) -> ExportedProgram:
    """A saved program; `ArtifactError` when the file is missing, damaged, of another kind, or would run code."""
    file = existing_file(str(path))
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ArtifactError(
            f"'{file}' is damaged or no exported program: {error}. Save it again with torch.export.save."
        ) from error
    if damaged is not None:
        raise ArtifactError(
            f"'{file}' is damaged: '{damaged}' does not have the checksum it was saved with. Copy or save it again."
        )
    if not trust_pickle and any(_PICKLED_OBJECT.search(name) for name in names):
        raise ArtifactError(
            f"'{file}' holds pickled Python objects, and loading them runs code. If you trust its author, "
            "pass --trust-pickle (trust_pickle=True)."
        )
    try:
        with quiet_exporter(), warnings.catch_warnings(), refuse_code_in_pickles(active=not trust_pickle):
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own buffers
            return torch.export.load(file)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"'{file}' is damaged or no exported program of this version of torch ({type(error).__name__}: {first}). "
            "Save it again with torch.export.save."
        ) from error


def _load(path: str, trust_pickle: bool) -> Source:
    return Source(load_exported(path, trust_pickle=trust_pickle), None, Path(path).stem)


KIND = SourceKind("model.pt2", _load, suffixes=(".pt2",))
