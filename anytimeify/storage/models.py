"""One file that holds a model: safetensors, with the graph and the scheme as JSON in its header. No pickle, no code."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify.contract import spec
from anytimeify.errors import AnytimeWarning, ArtifactError
from anytimeify.io import checksums
from anytimeify.io.files import regular_file, replaced_file
from anytimeify.ir import Captured, names
from anytimeify.ir.node_meta import type_of
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme, parse_scheme
from anytimeify.storage.documents import CHECKSUM, crc_of_text, crc_of_values, open_document
from anytimeify.storage.graphs import (
    decode_batch_range,
    decode_program,
    decode_signature,
    dtype_of,
    encode_program,
    encode_signature,
)
from anytimeify.storage.losses import decode_loss, encode_loss, loss_tensors
from anytimeify.storage.results import decode_results, encode_results
from anytimeify.storage.schemes import decode_scheme, encode_scheme
from anytimeify.taxonomy import Taxonomy

__all__ = ["FORMAT", "Stored", "read", "seal", "write"]

FORMAT = 3
WITH_RESULTS = 4  # levels return more than predictions
# Those before: checksums of values alone, parameters in the order of their names, no loss.
_BEFORE = (1, 2)
_KEY = "anytimeify"
_LARGEST_EXAMPLES = 1 << 28  # bytes that example inputs are given values for; larger ones are all zero and take none


@dataclass(frozen=True)
class Stored:
    """What a file holds: the backbone after `scheme.prepare`, the scheme, every tensor of the model, and its loss."""

    captured: Captured
    scheme: Scheme
    tensors: Mapping[str, Tensor]  # those of the backbone and those of the scheme; tied ones under each of their names
    options: Options = field(default_factory=Options)
    loss: nn.Module | str | None = None  # read: the name of one that was none of ours


def write(path: str | os.PathLike[str], stored: Stored) -> None:
    """Writes one file, whole or not at all. `ArtifactError` where the folder does not exist or cannot be written."""
    loss = stored.loss if isinstance(stored.loss, nn.Module) else None
    of_loss = {} if loss is None else loss_tensors(loss)
    named = {**stored.tensors, **{names.LOSS + name: tensor for name, tensor in of_loss.items()}}
    tensors, ties = _without_ties(named)
    captured = stored.captured
    document = {
        "format": FORMAT if captured.results is None else WITH_RESULTS,
        "scheme": encode_scheme(stored.scheme),
        "graph": encode_program(captured.program),
        "signature": encode_signature(captured.signature),
        "tensors": list(captured.program.tensors),  # in the order in which modules hold them, as optimizers do
        "parameters": {name: t.requires_grad for name, t in named.items() if isinstance(t, nn.Parameter)},
        "ties": ties,
        "examples": [
            [list(x.shape), str(x.dtype).removeprefix("torch."), _largest(x)] for x in captured.example_inputs
        ],
        "batch": captured.batch,
        "batch_range": list(captured.batch_range),
        "notes": list(captured.notes),
        "loss": None if loss is None else encode_loss(loss),
        **({} if captured.results is None else {"results": encode_results(captured.results)}),
        **_options_data(stored.options),
    }
    data = seal(document, tensors)
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def seal(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file: a description and tensors, with checksums that cover both."""
    digests = {name: checksums.of_tensor(tensor) for name, tensor in tensors.items()}
    text = json.dumps({**document, "checksums": digests}, separators=(",", ":"))
    return safetensors.torch.save(dict(tensors), {_KEY: text, CHECKSUM: checksums.of_text(text)})


def read(path: str | os.PathLike[str]) -> Stored:
    """Reads a file. `ArtifactError` where it is missing, damaged, of another kind, or asks for what is not allowed."""
    source = regular_file(path)
    document, tensors = _open(source)
    if document["format"] in _BEFORE:
        warnings.warn(
            f"{source} was written by an earlier version: it does not hold the loss, and parameters come in another "
            "order than in the model that was saved, so that an optimizer's state does not fit. Save it again",
            AnytimeWarning,
            stacklevel=3,  # who calls load
        )
    return _decode(document, tensors)


def _open(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document, tensors = open_document(
        source,
        _KEY,
        kind="not a saved anytime model",
        missing="tensors but no anytime model: net.save(path) did not write it",
        checksum=lambda text, said: crc_of_text(text) if said.get("format") in _BEFORE else checksums.of_text(text),
    )
    found = document.get("format")
    if type(found) is not int or found not in (*_BEFORE, FORMAT, WITH_RESULTS):
        raise ArtifactError(
            f"{source} has format {found!r}, this version of anytimeify reads format {WITH_RESULTS} and those before: "
            "load it with the version that wrote it, or a newer one"
        )
    return document, tensors


def _decode(document: Mapping[str, Any], tensors: dict[str, Tensor]) -> Stored:
    before = document["format"] in _BEFORE
    _compare_checksums(document["checksums"], tensors, crc_of_values if before else checksums.of_tensor)
    for name, requires_grad in document["parameters"].items():
        if name in tensors:
            tensors[name] = nn.Parameter(tensors[name], requires_grad=bool(requires_grad))
    for name, owner in document["ties"].items():
        tensors[name] = tensors[owner]
    program = decode_program(document["graph"], {name: tensors[name] for name in document["tensors"]})
    spec.verify(program, after="loading", types=False)
    captured = Captured(
        program,
        decode_signature(document["signature"]),
        _examples(document["examples"]),
        document["batch"],
        tuple(map(str, document["notes"])),
        batch_range=decode_batch_range(document.get("batch_range", [1, None])),
        results=decode_results(document["results"], len(program.outputs)) if "results" in document else None,
    )
    for node, example in zip(program.placeholders, captured.example_inputs, strict=True):
        if len(type_of(node).shape) != example.ndim:
            raise ArtifactError(f"the example for input '{node.name}' has another number of dimensions than the input")
    scheme = parse_scheme(document["scheme"]) if before else decode_scheme(document["scheme"])
    of_loss = {
        name.removeprefix(names.LOSS): tensors.pop(name) for name in list(tensors) if name.startswith(names.LOSS)
    }
    kept = document.get("loss")
    return Stored(captured, scheme, tensors, _options(document), None if kept is None else decode_loss(kept, of_loss))


def _compare_checksums(
    written: Mapping[str, Any], tensors: Mapping[str, Tensor], checksum: Callable[[Tensor], Any]
) -> None:
    if written.keys() != tensors.keys():
        other = min(written.keys() ^ tensors.keys())
        raise ArtifactError(f"damaged: {other} is not among both the tensors and their checksums")
    damaged = [name for name, tensor in tensors.items() if checksum(tensor) != written[name]]
    if damaged:
        raise ArtifactError(f"damaged: {damaged[0]} does not have the checksum that was written")


def _options_data(options: Options) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if options.taxonomy is not None:
        data["taxonomy"] = options.taxonomy.data()
    if options.consensus is not None:
        data["consensus"] = asdict(options.consensus)
    if options.checkpoint:
        data["checkpoint"] = True
    return data


def _options(document: Mapping[str, Any]) -> Options:
    taxonomy, consensus = document.get("taxonomy"), document.get("consensus")
    return Options(
        None if taxonomy is None else Taxonomy.from_data(taxonomy),
        None if consensus is None else Consensus(**consensus),
        document.get("checkpoint", False),
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


def _largest(example: Tensor) -> int:
    """What integer inputs may go up to: indices into an embedding have to stay in range when examples are made anew."""
    if example.is_floating_point() or example.is_complex() or not example.numel():
        return 0
    return int(example.max())


def _examples(entries: Iterable[tuple[list[int], str, int]]) -> tuple[Tensor, ...]:
    """Example inputs like those that the model was made with. Same file, same examples.

    A file may say any shape: where values would take too much memory, an example is one zero seen everywhere.
    """
    left, examples = _LARGEST_EXAMPLES, []
    for shape, dtype, largest in entries:
        kind = dtype_of(dtype)
        left -= math.prod(shape) * kind.itemsize
        examples.append(_example(shape, kind, largest) if left >= 0 else torch.zeros((), dtype=kind).expand(shape))
    return tuple(examples)


def _example(shape: list[int], kind: torch.dtype, largest: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(kind)
    return torch.randint(int(largest) + 1, shape, generator=generator).to(kind)
