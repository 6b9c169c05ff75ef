"""Weights of a backbone from a file: a state dict, as `safetensors` or `torch.save` writes it."""

from __future__ import annotations

import io
import os
import re
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify.capture.pt2.archive import Archive
from anytimeify.capture.pt2.checks import RefusedError
from anytimeify.errors import ArtifactError, first_line
from anytimeify.io.files import reading, regular_file
from anytimeify.process import ONE_AT_A_TIME

__all__ = ["load_checkpoint", "read_checkpoint", "read_saved"]

_WRAPPED = ("state_dict", "model_state_dict", "model")  # where training scripts put it
_PARALLEL = "module."  # what DistributedDataParallel puts before every name
_SHOWN = 4
ANY = re.compile(".*")  # names of members of an archive
ZIP = b"PK\x03\x04"  # how one begins


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, trust_pickle: bool = False) -> None:
    """Loads the tensors of a file into a model, all of them and into all of its own.

    Raises `ArtifactError` as `read_checkpoint` does, and where names or shapes are not those of the model."""
    state = read_checkpoint(path, trust_pickle=trust_pickle)
    own = model.state_dict()
    shapes = {
        name: f"{name} {list(tensor.shape)} for {list(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    }
    types = {
        name: f"{name} {tensor.dtype} for {own[name].dtype}"
        for name, tensor in state.items()
        if name in own and _kind(tensor) > _kind(own[name])
    }
    others = {**shapes, **types}
    found = model.load_state_dict({name: state[name] for name in state if name not in others}, strict=False)
    given = {own[name].data_ptr() for name in state if name in own}  # files may hold tied tensors once
    missing = [
        name
        for name in found.missing_keys
        if name not in others and not (name in own and own[name].data_ptr() in given)
    ]
    wrong = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("not in the model", found.unexpected_keys),
            ("of other shapes", list(shapes.values())),
            ("of other types", list(types.values())),
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
    return _state_dict(read_saved(file, trust_pickle=trust_pickle), file)


def read_saved(file: Path, *, trust_pickle: bool = False, checksums: bool = False) -> Any:
    """What `torch.save` wrote, of tensors and plain containers; anything with `trust_pickle`. With `checksums`, those
    of the archive are compared, which torch does not do, and not everybody writes. `ArtifactError` for another file."""
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = file if trust_pickle else _checked(file, checksums)
            return torch.load(source, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:
        if trust_pickle or "weights_only" not in str(error).lower():
            raise ArtifactError(
                f"'{file}' is damaged, or no checkpoint ({type(error).__name__}: {first_line(error)})"
            ) from error
        raise ArtifactError(
            f"'{file}' holds more than tensors, and reading that would run the code in it; nothing was loaded. If you "
            "trust its author, pass --trust-pickle (trust_pickle=True)."
        ) from error


def _checked(file: Path, checksums: bool) -> Path | io.BytesIO:
    """What torch may read: an archive whose members are no larger than the file, or the form before torch 1.6 from
    memory, for on a file each length in it is memory that Python asks for. Refuses tar files, the form before torch
    0.1.10, which torch would unpack into a folder."""
    with file.open("rb") as opened:
        if opened.read(len(ZIP)) == ZIP:  # what torch goes by
            with Archive(opened, ANY) as archive:
                for name in archive.names if checksums else ():
                    archive.read(name)
            return file
    if tarfile.is_tarfile(file):
        raise RefusedError("", "is a tar file, as torch wrote them before 0.1.10: save it again")
    return io.BytesIO(file.read_bytes())


def _state_dict(found: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(found, nn.Module):
        found = found.state_dict()
    inner = [found[key] for key in _WRAPPED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    state = inner[0] if inner else found
    if not isinstance(state, Mapping) or not state or not all(isinstance(one, Tensor) for one in state.values()):
        raise ArtifactError(f"'{file}' holds a {type(found).__name__}, no state dict: expected names with tensors.")
    strange = [str(name) for name, tensor in state.items() if not isinstance(name, str) or not _is_plain(tensor)]
    if strange:
        raise ArtifactError(
            f"'{file}' holds tensors that no network is given, without values, sparse, quantised or without a name: "
            f"{_listed(strange)}."
        )
    parallel = all(name.startswith(_PARALLEL) for name in state)
    return {name.removeprefix(_PARALLEL) if parallel else name: tensor for name, tensor in state.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has values, one for each element."""
    strange = tensor.is_meta or tensor.is_quantized or tensor.is_nested
    return not strange and tensor.layout is torch.strided


def _kind(tensor: Tensor) -> int:
    """Integers, real numbers, complex ones: what goes into the next without loss."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
