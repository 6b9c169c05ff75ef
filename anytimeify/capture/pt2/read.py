"""From a `.pt2` file to a program, without torch's loader.

1. The members of the archive are of the kinds below. Compiled libraries, pickled constants and what other runtimes put
   there are not among them. 2. The documents are compared with the tables of `schema`. 3. Tensors are made from their
   bytes, example inputs without unpickling. 4. torch gets the checked document and the tensors, never the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from anytimeify._torch import program_of_parts
from anytimeify.capture.pt2.archive import Archive
from anytimeify.capture.pt2.checks import RefusedError, shown
from anytimeify.capture.pt2.inputs import read_inputs
from anytimeify.capture.pt2.schema import check_payloads, check_program, without_provenance
from anytimeify.capture.pt2.tensors import read_tensors
from anytimeify.ir.node_meta import value_of

__all__ = ["MODEL", "read_program"]

MODEL = "model"  # what torch.export.save calls the one program that it writes
_NAMES = "(model|level_[0-9]{1,4})"  # the latter in files of several levels
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    rf"|\.format_version|\.storage_alignment|models/{_NAMES}\.json|data/sample_inputs/{_NAMES}\.pt"
    rf"|data/weights/(weight_[0-9]{{1,9}}|{_NAMES}_weights_config\.json)"
    rf"|data/constants/(tensor_[0-9]{{1,9}}|{_NAMES}_constants_config\.json)"
    r"|extra/[A-Za-z0-9_.\-/]{1,200}"
)
_EXPECTED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}


def read_program(file: Path, model: str = MODEL) -> ExportedProgram:
    """The program of that name in a file.

    Raises `RefusedError` where a member or a field is of no kind that runs no code, `zipfile.BadZipFile` where the file
    is damaged, and what torch raises where the parts do not fit together."""
    with file.open("rb") as stream, Archive(stream, _MEMBERS) as archive:
        for member, expected in _EXPECTED.items():
            if member in archive.names and archive.read(member).strip() != expected:
                raise RefusedError(f"member '{member}'", f"expected {expected.decode()}")
        document = _document(archive, f"models/{model}.json", check_program)
        state, constants = (_tensors(archive, model, kind) for kind in ("weights", "constants"))
        inputs = read_inputs(archive.read(f"data/sample_inputs/{model}.pt"))
    without_provenance(document["graph_module"]["graph"])
    program = program_of_parts(document, state, constants, inputs)
    _check_fit(program)
    return program


def _check_fit(program: ExportedProgram) -> None:
    """`RefusedError` where a weight or a constant is missing, or is not of the type that the graph reads."""
    if program.call_spec.in_spec is None:
        raise RefusedError("", "does not say how it is called")
    values = {node.name: value_of(node) for node in program.graph.find_nodes(op="placeholder")}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.USER_INPUT, InputKind.TOKEN, InputKind.CUSTOM_OBJ):
            continue
        tensors = program.constants if _is_constant(spec) else program.state_dict
        found, wanted = tensors.get(str(spec.target)), values.get(spec.arg.name)
        if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
            raise RefusedError("", f"has no tensor '{spec.target}', which its graph reads")
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise RefusedError(
                "",
                f"reads '{spec.target}' as {list(wanted.shape)} {wanted.dtype}, and it is {list(found.shape)} "
                f"{found.dtype}",
            )


def _is_constant(spec: InputSpec) -> bool:
    return spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and not spec.persistent)


def _tensors(archive: Archive, model: str, kind: str) -> dict[str, Any]:
    folder = f"data/{kind}"
    config = _document(archive, f"{folder}/{model}_{kind}_config.json", check_payloads)
    return read_tensors(archive, folder, config["config"], parameters=kind == "weights")


def _document(archive: Archive, member: str, check: Any) -> Any:
    def number(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a field is there twice")
        return dict(pairs)

    try:
        document = json.loads(archive.read(member).decode(), parse_constant=number, object_pairs_hook=once)
        check(document)
    except RefusedError as error:
        raise RefusedError(f"member '{member}'", str(error)) from error
    except RecursionError as error:
        raise RefusedError(f"member '{member}'", "is nested too deeply") from error
    except ValueError as error:
        raise RefusedError(f"member '{member}'", f"is no document: {shown(str(error))}") from error
    return document
