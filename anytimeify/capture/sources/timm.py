"""`timm:NAME`: a model of timm, without downloaded weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.inputs import CallInputs, image
from anytimeify.capture.sources.source import Source, SourceKind
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


KIND = SourceKind("timm:NAME", _load, prefix="timm", inputs=_inputs)
