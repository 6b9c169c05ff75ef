"""`torchvision:NAME`: a model of torchvision, with random weights or its own; its input from the weights' metadata."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

import torch
from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.inputs import CallInputs, image
from anytimeify.capture.sources.source import Source, SourceKind, no_pretrained
from anytimeify.errors import CaptureError, MissingExtraError
from anytimeify.process import ONE_AT_A_TIME

__all__ = ["KIND"]


def _load(name: str, trust_pickle: bool) -> Source:
    return _built(name, None)


def _pretrained(name: str) -> Source:
    try:
        return _built(name, "DEFAULT")
    except (CaptureError, MissingExtraError):
        raise
    except Exception as error:  # whatever its downloads raise
        raise no_pretrained(f"torchvision:{name}", error) from error


def _built(name: str, weights: str | None) -> Source:
    prepare_torchvision()
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "zoo", f"The source 'torchvision:{name}'") from error
    if name not in models.list_models():
        close = difflib.get_close_matches(name, models.list_models(), 3)
        raise CaptureError(
            f"torchvision has no model '{name}'." + (f" Did you mean {', '.join(close)}?" if close else "")
        )
    options = inspect.signature(models.get_model_builder(name)).parameters
    backbones = {"weights_backbone": None} if "weights_backbone" in options else {}
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on initialisation, which transform does not change
        model = models.get_model(name, weights=weights, **backbones)
    size = _crop_size(models.get_model_weights(name))
    return Source(model, None if size is None else _images(size), name)


def _crop_size(weights: Any) -> int | None:
    best = getattr(weights, "DEFAULT", None)
    transforms = best.transforms() if best is not None else None
    for attribute in ("crop_size", "resize_size"):
        size = getattr(transforms, attribute, None)
        if size:
            return int(size[0])
    return None


def _images(size: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def _inputs(model: nn.Module) -> CallInputs | None:
    """An image of 224 pixels a side (Inception v3: 299), or of the model's own `image_size`. A module does not say
    more; `_load` knows the metadata of the weights."""
    module = type(model).__module__
    if not module.startswith("torchvision.models.") or module.startswith(
        ("torchvision.models.detection", "torchvision.models.optical_flow", "torchvision.models.video")
    ):
        return None
    size = getattr(model, "image_size", 299 if module.endswith("inception") else 224)
    return image(model, 3, int(size), int(size)) if isinstance(size, int) else None


KIND = SourceKind("torchvision:NAME", _load, prefix="torchvision", inputs=_inputs, pretrained=_pretrained)
