"""Weights of a backbone from a file: a state dict, as `safetensors` or `torch.save` writes it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify.errors import ArtifactError, first_line
from anytimeify.io.files import reading, regular_file
from anytimeify.process import ONE_AT_A_TIME

__all__ = ["load_checkpoint", "read_checkpoint"]

_WRAPPED = ("state_dict", "model_state_dict", "model")  # where training scripts put it
_PARALLEL = "module."  # what DistributedDataParallel puts before every name
_SHOWN = 4


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, trust_pickle: bool = False) -> None:
    """Loads the tensors of a file into a model, all of them and into all of its own.

    Raises `ArtifactError` as `read_checkpoint` does, and where names or shapes are not those of the model."""
    state = read_checkpoint(path, trust_pickle=trust_pickle)
    own = model.state_dict()
    others = {name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape}
    found = model.load_state_dict({name: state[name] for name in state if name not in others}, strict=False)
    given = {own[name].data_ptr() for name in state if name in own}  # files may hold tied tensors once
    missing = [
        name
        for name in found.missing_keys
        if name not in others and not (name in own and own[name].data_ptr() in given)
    ]
    shapes = [f"{name} {list(state[name].shape)} for {list(own[name].shape)}" for name in state if name in others]
    wrong = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("not in the model", found.unexpected_keys),
            ("of other shapes", shapes),
        )
        if names
    ]
    if wrong:
        raise ArtifactError(
            f"'{path}' does not fit {type(model).__name__}. {'; '.join(wrong)}. Give the checkpoint of this very "
            "network; for one with other classes, write a function that builds it, named as package.module:factory."
        )


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict of a file: `.safetensors`, or what `torch.save` wrote, of which only tensors and plain containers
    are read. `trust_pickle=True` unpickles anything, which runs the code in it. A state dict under `state_dict`,
    `model_state_dict` or `model` is found, and `module.` before all names is left out.

    Raises `ArtifactError` for a file that is missing, damaged, holds something else, or needs trust."""
    file = regular_file(path)
    if file.suffix == ".safetensors":
        with reading(file):
            return safetensors.torch.load_file(file)
    return _state_dict(_unpickled(file, trust_pickle), file)


def _unpickled(file: Path, trust_pickle: bool) -> Any:
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:
        if trust_pickle or "weights_only" not in str(error).lower():
            raise ArtifactError(
                f"'{file}' is damaged, or no checkpoint ({type(error).__name__}: {first_line(error)})"
            ) from error
        raise ArtifactError(
            f"'{file}' holds more than tensors, and reading that would run the code in it; nothing was loaded. If you "
            "trust its author, pass --trust-pickle (trust_pickle=True)."
        ) from error


def _state_dict(found: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(found, nn.Module):
        found = found.state_dict()
    inner = [found[key] for key in _WRAPPED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    state = inner[0] if inner else found
    if not isinstance(state, Mapping) or not state or not all(isinstance(one, Tensor) for one in state.values()):
        raise ArtifactError(f"'{file}' holds a {type(found).__name__}, no state dict: expected names with tensors.")
    parallel = all(name.startswith(_PARALLEL) for name in state)
    return {name.removeprefix(_PARALLEL) if parallel else name: tensor for name, tensor in state.items()}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
