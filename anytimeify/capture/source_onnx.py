"""`model.onnx`: a place in the table, so that an importer is this one file."""

from __future__ import annotations

from anytimeify.capture.source import Source, SourceKind, existing_file
from anytimeify.errors import CaptureError

__all__ = ["KIND"]


def _load(path: str, trust_pickle: bool) -> Source:
    file = existing_file(path)
    raise CaptureError(
        f"ONNX sources are not supported yet: '{file}'. Export the PyTorch model with torch.export.save instead."
    )


KIND = SourceKind("model.onnx", _load, suffixes=(".onnx",))
