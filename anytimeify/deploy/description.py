"""Writes what a file of several levels says of itself; `anytimeify.serving.description` says what that is."""

from __future__ import annotations

import json

import torch
from torch import nn

from anytimeify.deploy.levels import Levels
from anytimeify.io import checksums
from anytimeify.serving.description import FORMAT, KEY
from anytimeify.version import __version__

__all__ = ["KEY", "describe"]


def describe(levels: Levels) -> str:
    """The document. `batch` are the sizes that a batch may have, without an end where there is none; null where its
    size is fixed."""
    rows = [
        {"name": level.name, "number": level.number, **level.cost._asdict(), "sha256": _digest(module)}
        for level, module in zip(levels.levels, levels.extracts, strict=True)
    ]
    described = {
        "format": FORMAT,
        "scheme": levels.scheme,
        "batch": levels.batch,
        "levels": rows,
        "versions": {"anytimeify": __version__, "torch": torch.__version__},
    }
    return json.dumps(described, separators=(",", ":"))


def _digest(module: nn.Module) -> str:
    tensors = module.state_dict().items()
    return checksums.of_data([[name, checksums.of_tensor(tensor.cpu().contiguous())] for name, tensor in tensors])
