"""`resolve`, which users know as `anytimeify.source`: from the name of a model, the SOURCE of a command line, to it.
And `infer`: from a model to its inputs.

A kind of source is a file beside this one with a `KIND`; being there is being registered.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytimeify.capture.checkpoint import load_checkpoint
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources.source import InputSizes, Source, SourceKind
from anytimeify.errors import ArgumentError, ArtifactError, CaptureError, refusing

__all__ = ["infer", "kinds", "notes_on", "resolve"]


@cache
def kinds() -> tuple[SourceKind, ...]:
    """All kinds of source, those that only a pattern tells last."""
    package = __name__.rpartition(".")[0]
    beside = pkgutil.iter_modules(importlib.import_module(package).__path__)
    modules = [importlib.import_module(f"{package}.{name}") for name in sorted(info.name for info in beside)]
    found = [module.KIND for module in modules if hasattr(module, "KIND")]
    return tuple(sorted(found, key=lambda kind: bool(kind.pattern)))


def resolve(
    spec: str | os.PathLike[str],
    *,
    trust_pickle: bool = False,
    inputs: InputSizes | None = None,
    values: bool = True,
    pretrained: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Source:
    """The model that `spec` names: a file, `model.pt2`, or `kind:name`, `timm:resnet50`, as on the command line.

    The result is given to `transform` as it is, or taken apart: its `model`, its `example_inputs` where they are known
    (else None), and its `name`. `trust_pickle=True` reads pickled modules, which runs the code in them. `inputs` gives
    the sizes of inputs by their names, `{"x": (2, 3, 224, 224)}`, where example inputs are to be made: of random
    numbers, or of the types that an ONNX file says. An input of such a file that has no axes is given its value, which
    is a constant of the model then: `{"sr": 16000}`. `values=False` gives models of transformers without weights, on
    the meta device, whatever their size.

    Names of timm and torchvision have random weights. `pretrained=True` takes those that the library has for the name,
    from its cache or downloaded as it sees fit; `checkpoint` loads a state dict: a `.safetensors` file, or what
    `torch.save` wrote, of which only tensors and plain containers are read unless `trust_pickle`.

    Raises `ArtifactError` for a file that is missing, damaged or not to be trusted, `CaptureError` for a name that
    nothing stands behind, `MissingExtraError` where a package is needed that is not installed.
    """
    text = os.fspath(spec)
    if not isinstance(text, str):
        raise ArgumentError(f"a source is given as {spec!r}: expected a text, such as 'timm:resnet50'")
    with refusing(ArtifactError, f"'{text}'"):
        found = _pretrained(text) if pretrained else _load(text, trust_pickle, values)
        if checkpoint is not None:
            _load_weights(found, text, checkpoint, trust_pickle)
        return found if inputs is None else _with_inputs(found, inputs)


def _pretrained(source: str) -> Source:
    able = [kind for kind in kinds() if kind.pretrained is not None]
    for kind in able:
        if kind.pretrained is not None and kind.matches(source):
            return kind.pretrained(source.removeprefix(kind.prefix + ":"))
    known = ", ".join(kind.example for kind in able)
    raise CaptureError(f"'{source}' has no pretrained weights to choose: sources that do are {known}.")


def _load_weights(found: Source, source: str, checkpoint: str | os.PathLike[str], trust_pickle: bool) -> None:
    if not isinstance(found.model, nn.Module):
        raise CaptureError(f"'{source}' is an exported program, which has its weights: a checkpoint fits a module.")
    load_checkpoint(found.model, checkpoint, trust_pickle=trust_pickle)


def _load(source: str, trust_pickle: bool, values: bool) -> Source:
    for kind in kinds():
        if kind.matches(source):
            place = source.removeprefix(kind.prefix + ":") if kind.prefix else source
            return kind.load(place, trust_pickle) if values or kind.shapes is None else kind.shapes(place)
    known = ", ".join(kind.example for kind in kinds())
    if not Path(source).exists() and not Path(source).suffix:
        raise ArtifactError(f"'{source}' names no model, and there is no such file. A source is one of: {known}.")
    if not Path(source).exists():
        raise ArtifactError(
            f"There is no file '{source}', and its extension is none of a model. A source is one of: {known}."
        )
    raise ArtifactError(f"'{source}' does not have the extension of a saved model. A source is one of: {known}.")


def _with_inputs(source: Source, sizes: InputSizes) -> Source:
    if source.with_inputs is not None:
        return source.with_inputs(sizes)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, value in sizes.items():
        shape: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,)
        if any(not isinstance(size, int) or size < 1 for size in shape):
            raise ArgumentError(f"inputs: '{name}' is given {value!r}; expected sizes such as (2, 3, 224, 224)")
        tensors[name] = torch.randn(shape, generator=generator)
    return replace(source, example_inputs=CallInputs((), tensors))


def notes_on(model: nn.Module) -> tuple[str, ...]:
    """What a report has to say of where a model comes from."""
    return tuple(note for kind in kinds() if kind.notes is not None for note in kind.notes(model))


def infer(model: nn.Module) -> CallInputs:
    """Inputs for models that say themselves what they take, as those of timm, transformers and torchvision do."""
    for kind in kinds():
        found = kind.inputs(model) if kind.inputs is not None else None
        if found is not None:
            return found
    raise CaptureError(
        f"Nothing tells the input of {type(model).__module__}.{type(model).__qualname__}. "
        "Pass example_inputs, for instance example_inputs=(torch.randn(2, 3, 224, 224),)."
    )
