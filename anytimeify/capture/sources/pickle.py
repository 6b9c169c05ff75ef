"""`model.pt`, `model.pth`: a whole module saved by `torch.save`. Loading one runs code, so it needs consent."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.sources.source import Source, SourceKind, existing_file
from anytimeify.errors import ArtifactError, first_line
from anytimeify.process import ONE_AT_A_TIME

__all__ = ["KIND"]


def _load(path: str, trust_pickle: bool) -> Source:
    file = existing_file(path)
    if not trust_pickle:
        raise ArtifactError(
            f"'{file}' is a pickle, and loading one runs the code in it; nothing was loaded. If you trust its author, "
            "pass --trust-pickle (trust_pickle=True). A file written by torch.export.save needs no trust."
        )
    prepare_torchvision()
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ArtifactError(
            f"'{file}' cannot be unpickled ({type(error).__name__}: {first_line(error)}). Is it whole, and is its code "
            "installed?"
        ) from error
    if isinstance(model, nn.Module):
        return Source(model, None, Path(path).stem)
    if isinstance(model, Mapping):
        raise ArtifactError(
            f"'{file}' holds a state dict, not a model. Build the model and load it there: "
            "write a function that does both, and name it as package.module:factory."
        )
    raise ArtifactError(f"'{file}' holds a {type(model).__name__}, not a model.")


KIND = SourceKind("model.pt (with --trust-pickle)", _load, suffixes=(".pt", ".pth", ".pkl"))
