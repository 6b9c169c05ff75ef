"""`timm:NAME`: a model of timm, with random weights or with those that timm has for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.inputs import CallInputs, image
from anytimeify.capture.sources.source import Source, SourceKind, no_pretrained
from anytimeify.errors import CaptureError, MissingExtraError

__all__ = ["KIND"]


def _load(name: str, trust_pickle: bool) -> Source:
    return Source(_timm(name).create_model(name, pretrained=False), None, name)


def _pretrained(name: str) -> Source:
    timm = _timm(name)
    try:
        return Source(timm.create_model(name, pretrained=True), None, name)
    except Exception as error:  # whatever its downloads raise
        raise no_pretrained(f"timm:{name}", error) from error


def _timm(name: str) -> Any:
    """The library, which has a model of that name."""
    prepare_torchvision()
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "zoo", f"The source 'timm:{name}'") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise CaptureError(f"timm has no model '{name}'." + (f" Did you mean {', '.join(close)}?" if close else ""))
    return timm


def _inputs(model: nn.Module) -> CallInputs | None:
    """As `pretrained_cfg` tells."""
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if size is None:
        return None
    patches = getattr(model, "patch_embed", None)
    actual = getattr(patches, "img_size", None)  # create_model(..., img_size=96) does not reach the config
    if isinstance(actual, (tuple, list)) and len(actual) == len(size) - 1:
        size = (size[0], *actual)
    channels = getattr(model, "in_chans", None)
    return image(model, int(channels or size[0]), *map(int, size[1:]))


KIND = SourceKind("timm:NAME", _load, prefix="timm", inputs=_inputs, pretrained=_pretrained)
