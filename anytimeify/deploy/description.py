"""What a file of several levels says of itself: a JSON document, `anytimeify` in its metadata.

    {"format": 1,
     "scheme": "nested-channels{widths=0.5,1}",
     "batch": [1, null],
     "levels": [{"name": "width 0.5", "number": 0.5, "macs": 9, "params": 9, "activation_bytes": 9, "sha256": "..."}],
     "versions": {"anytimeify": "0.1.0", "torch": "2.13.0"}}

Levels stand in the order of their numbers in the file: the cheapest is 0. `sha256` covers the values of all tensors of
the level, under the names that its extract has for them.
"""

from __future__ import annotations

import json

import torch
from torch import nn

from anytimeify.deploy.levels import Levels
from anytimeify.io import checksums
from anytimeify.version import __version__

__all__ = ["FORMAT", "KEY", "describe"]

FORMAT = 1
KEY = "anytimeify"


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
