"""Saved models: reading them, and writing their levels."""

from __future__ import annotations

from pathlib import Path

from anytimeify.capture.inputs import CallInputs
from anytimeify.cli.showing import doing
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.storage.export import FORMATS

__all__ = ["MODEL", "load_model", "write_level"]

MODEL = "net.safetensors"  # the saved model in the folder that `convert` writes


def load_model(path: Path) -> AnytimeModel:
    """The model in a folder or file."""
    with doing(f"loading {path}"):
        return load(path / MODEL if path.is_dir() else path)


def write_level(
    net: AnytimeModel,
    index: int,
    kind: str,
    path: Path,
    *,
    fold: bool = False,
    granularity: str | None = None,
    force: bool = False,
) -> None:
    """One level as a file of its own."""
    with doing(f"writing level {index} ({net.levels[index].name}) as {kind}"):
        captured = net.captured
        args, kwargs = net.call_signature.arguments(captured.example_inputs, captured.signature)
        small = net.extract(index, fold=fold, granularity=granularity)
        FORMATS[kind](small, CallInputs(args, kwargs), path, captured.batch is not None, replace=force)
