"""`paper:NAME`: the backbone of a network of the papers. `anytimeify train` gives it the paper's own levels."""

from __future__ import annotations

import importlib

from torch import nn

from anytimeify.capture.sources.source import Source, SourceKind
from anytimeify.errors import CaptureError

__all__ = ["KIND"]


def _load(name: str, trust_pickle: bool) -> Source:
    papers = importlib.import_module("anytimeify.papers")  # recipes hold schemes, which are made of what is captured
    printed = papers.recipe(name)
    if not isinstance(printed.backbone, nn.Module):
        raise CaptureError(
            f"'paper:{name}' is two networks, and a source is one. In Python, anytimeify.papers.recipe('{name}') has "
            "both."
        )
    return Source(printed.backbone, printed.example_inputs, name)


KIND = SourceKind("paper:NAME", _load, prefix="paper")
