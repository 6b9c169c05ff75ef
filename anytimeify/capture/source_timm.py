"""`timm:NAME`: a model of timm, without downloaded weights."""

from __future__ import annotations

import difflib

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.source import Source, SourceKind
from anytimeify.errors import CaptureError, MissingExtraError

__all__ = ["KIND"]


def _load(name: str, trust_pickle: bool) -> Source:
    prepare_torchvision()
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "zoo", f"The source 'timm:{name}'") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise CaptureError(f"timm has no model '{name}'." + (f" Did you mean {', '.join(close)}?" if close else ""))
    return Source(timm.create_model(name, pretrained=False), None, name)


KIND = SourceKind("timm:NAME", _load, prefix="timm")
