"""One file that holds a model: safetensors, with the graph and the scheme as JSON in its header. No pickle, no code."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify import spec
from anytimeify.encoding import decode_program, decode_signature, dtype_of, encode_program, encode_signature
from anytimeify.errors import AnytimeError, ArtifactError
from anytimeify.ir import Captured
from anytimeify.passes.consensus import Consensus
from anytimeify.passes.options import Options
from anytimeify.rewriter import Scheme, parse_scheme
from anytimeify.taxonomy import Taxonomy

__all__ = ["FORMAT", "Stored", "read", "write"]

FORMAT = 1
# Of files that code for the format before cannot read: those of models with a taxonomy or a consensus.
WITH_OPTIONS = 2
_KEY, _CHECKSUM = "anytimeify", "anytimeify.checksum"


@dataclass(frozen=True)
class Stored:
    """What a file holds: the backbone after `scheme.prepare`, the scheme, and every tensor of the model."""

    captured: Captured
    scheme: Scheme
    tensors: Mapping[str, Tensor]  # those of the backbone and those of the scheme; tied ones under each of their names
    options: Options = field(default_factory=Options)


def write(path: str | os.PathLike[str], stored: Stored) -> None:
    """Writes one file, whole or not at all. `ArtifactError` where the folder does not exist or cannot be written."""
    target = Path(path)
    if target.is_dir():
        raise ArtifactError(f"{target} is a folder: give the name of a file to save to")
    if not target.parent.is_dir():
        raise ArtifactError(f"cannot save to {target}: the folder {target.parent} does not exist")
    tensors, ties = _without_ties(stored.tensors)
    captured = stored.captured
    document = {
        "format": FORMAT if stored.options == Options() else WITH_OPTIONS,
        "scheme": str(stored.scheme),
        "graph": encode_program(captured.program),
        "signature": encode_signature(captured.signature),
        "tensors": sorted(captured.program.tensors),
        "parameters": {name: t.requires_grad for name, t in stored.tensors.items() if isinstance(t, nn.Parameter)},
        "ties": ties,
        "examples": [
            [list(x.shape), str(x.dtype).removeprefix("torch."), _largest(x)] for x in captured.example_inputs
        ],
        "batch": captured.batch,
        "notes": list(captured.notes),
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
        **_options_data(stored.options),
    }
    text = json.dumps(document, separators=(",", ":"))
    data = safetensors.torch.save(tensors, {_KEY: text, _CHECKSUM: str(zlib.crc32(text.encode()))})
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ArtifactError(f"cannot save to {target}: {error}") from error


def read(path: str | os.PathLike[str]) -> Stored:
    """Reads a file. `ArtifactError` where it is missing, damaged, of another kind, or asks for what is not allowed."""
    source = Path(path)
    if not source.exists():
        raise ArtifactError(f"{source} does not exist")
    if source.is_dir():
        raise ArtifactError(f"{source} is a folder: give the file that net.save(path) wrote")
    document, tensors = _open(source)
    if document.get("format") not in (FORMAT, WITH_OPTIONS):
        raise ArtifactError(
            f"{source} has format {document.get('format')!r}, this version of anytimeify reads format {FORMAT} and "
            f"{WITH_OPTIONS}: load it with the version that wrote it, or a newer one"
        )
    try:
        return _decode(document, tensors)
    except AnytimeError as error:
        raise ArtifactError(f"{source}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise ArtifactError(f"{source} is damaged: its description cannot be read ({error!r})") from error


def _open(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(str(source), framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ArtifactError(f"{source} holds tensors but no anytime model: net.save(path) did not write it")
            # In memory of their own, aligned as torch's is: it decides which kernels run, and so how sums are rounded.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
        document = json.loads(metadata[_KEY])
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{source} is not a saved anytime model, or is damaged ({error})") from error
    if not isinstance(document, dict) or metadata.get(_CHECKSUM) != str(zlib.crc32(metadata[_KEY].encode())):
        raise ArtifactError(f"{source} is damaged: its description does not have the checksum that was written")
    return document, tensors


def _decode(document: Mapping[str, Any], tensors: dict[str, Tensor]) -> Stored:
    damaged = [name for name, checksum in document["checksums"].items() if _checksum(tensors[name]) != checksum]
    if damaged:
        raise ArtifactError(f"damaged: the values of {damaged[0]} do not have the checksum that was written")
    parameters = document["parameters"]
    for name, requires_grad in parameters.items():
        if name in tensors:
            tensors[name] = nn.Parameter(tensors[name], requires_grad=bool(requires_grad))
    for name, owner in document["ties"].items():
        tensors[name] = tensors[owner]
    program = decode_program(document["graph"], {name: tensors[name] for name in document["tensors"]})
    spec.verify(program, after="loading")
    captured = Captured(
        program,
        decode_signature(document["signature"]),
        tuple(_example(*entry) for entry in document["examples"]),
        document["batch"],
        tuple(map(str, document["notes"])),
    )
    for node, example in zip(program.placeholders, captured.example_inputs, strict=True):
        if len(node.meta["type"].shape) != example.ndim:
            raise ArtifactError(f"the example for input '{node.name}' has another number of dimensions than the input")
    return Stored(captured, parse_scheme(document["scheme"]), tensors, _options(document))


def _options_data(options: Options) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if options.taxonomy is not None:
        data["taxonomy"] = options.taxonomy.data()
    if options.consensus is not None:
        data["consensus"] = asdict(options.consensus)
    return data


def _options(document: Mapping[str, Any]) -> Options:
    taxonomy, consensus = document.get("taxonomy"), document.get("consensus")
    return Options(
        None if taxonomy is None else Taxonomy.from_data(taxonomy),
        None if consensus is None else Consensus(**consensus),
    )


def _without_ties(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, contiguous and on the CPU, and the further names of tied ones."""
    owners: dict[int, str] = {}
    ties = {name: owner for name, tensor in tensors.items() if (owner := owners.setdefault(id(tensor), name)) != name}
    kept: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if name not in ties:
            data = tensor.detach().to("cpu").contiguous()
            storage = data.untyped_storage()
            whole = storage.nbytes() == data.numel() * data.element_size() and storage.data_ptr() not in storages
            kept[name] = data if whole else data.clone()
            storages.add(storage.data_ptr())
    return kept, ties


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0


def _largest(example: Tensor) -> int:
    """What integer inputs may go up to: indices into an embedding have to stay in range when examples are made anew."""
    if example.is_floating_point() or example.is_complex() or not example.numel():
        return 0
    return int(example.max())


def _example(shape: list[int], dtype: str, largest: int) -> Tensor:
    """An example input like the one that the model was made with. Same file, same example."""
    kind = dtype_of(dtype)
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(kind)
    return torch.randint(int(largest) + 1, shape, generator=generator).to(kind)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
