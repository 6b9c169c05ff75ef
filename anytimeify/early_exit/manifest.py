"""`stages.json`: what a folder of stages says of itself, for the loader here and for runners in other languages."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anytimeify.early_exit.cascade import Chain, Stage
from anytimeify.early_exit.policies import ExitPolicy, policy_from_dict, policy_to_dict
from anytimeify.errors import AnytimeError, AnytimeWarning, ArtifactError
from anytimeify.io import checksums
from anytimeify.ir import Cost, Level, Size, TensorType
from anytimeify.storage.graphs import decode_batch_range, decode_signature, dtype_of, encode_signature

__all__ = ["FORMAT", "MANIFEST", "Manifest", "check_file", "decode", "encode", "seal", "stage_file"]

MANIFEST = "stages.json"
FORMAT = 2  # raised when a folder can no longer be read by the code before
_BEFORE = 1  # without checksums


@dataclass(frozen=True)
class Manifest:
    """The chain, the formats that its stages were written in, the policy, and the checksums of all files beside it."""

    chain: Chain
    formats: tuple[str, ...]
    policy: ExitPolicy | None
    checksums: Mapping[str, str] | None = field(default_factory=dict)  # by name; None: from before there were any


def stage_file(index: int, format: str) -> str:
    """The name of a stage's file. Stages are numbered like the exits."""
    return f"stage-{index}.{format}"


def encode(chain: Chain, formats: Sequence[str], policy: ExitPolicy | None, folder: Path | None = None) -> str:
    """The text of the file, for a `folder` in which all others are there."""
    files = sorted(folder.iterdir()) if folder is not None else []
    document = {
        "format": FORMAT,
        "formats": list(formats),
        "batch": chain.batch,
        "batch_range": list(chain.batch_range),
        "inputs": list(chain.inputs),
        "signature": encode_signature(chain.signature),
        # `samples`: the dimension in which samples may be left out; null where there is none.
        "values": {
            name: {
                "shape": list(map(str, kind.shape)),
                "dtype": str(kind.dtype).removeprefix("torch."),
                "samples": chain.sample_dim(name),
            }
            for name, kind in chain.values.items()
        },
        "separable": chain.separable,
        "stages": [
            {
                "files": {format: stage_file(index, format) for format in formats},
                "reads": list(stage.reads),
                "gives": list(stage.gives),  # the last is the prediction
                "macs": stage.macs,
                "level": {"index": stage.level.index, "name": stage.level.name, **stage.level.cost._asdict()},
            }
            for index, stage in enumerate(chain.stages)
        ],
        "policy": None if policy is None else policy_to_dict(policy),
        "checksums": {file.name: checksums.of_file(file) for file in files},  # SHA-256
    }
    return seal(document)


def seal(document: Mapping[str, Any]) -> str:
    """The text of a file that says `document`, and a checksum of that: SHA-256 over it as JSON with sorted keys and no
    spaces."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return json.dumps({**rest, "checksum": checksums.of_data(rest)}, indent=2) + "\n"


def check_file(manifest: Manifest, file: Path) -> None:
    """`ArtifactError` where a file, or one that it refers to, is not as it was written."""
    for name, checksum in (manifest.checksums or {}).items():
        if name != file.name and not name.startswith(f"{file.name}."):  # NAME.data holds large tensors of ONNX
            continue
        part = file.with_name(name)
        if Path(name).name != name or not part.is_file():
            raise ArtifactError(f"'{part}' is missing: the folder is not whole")
        if checksums.of_file(part) != checksum:
            raise ArtifactError(f"'{part}' is damaged: it does not have the checksum that was written")
    if manifest.checksums is not None and file.name not in manifest.checksums:
        raise ArtifactError(f"'{file}' is none of the files that were written: there is no checksum of it")


def decode(text: str, name: str) -> Manifest:
    """The inverse. `ArtifactError`, which calls the file `name`, where the text is damaged or of another format."""
    try:
        document = json.loads(text)
        found = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{name} does not describe stages, or is damaged ({error!r})") from error
    if type(found) is not int or found not in (_BEFORE, FORMAT):
        raise ArtifactError(
            f"{name} has format {found!r}, this version of anytimeify reads format {FORMAT} and {_BEFORE}: load it "
            "with the version that wrote it, or a newer one"
        )
    if found == _BEFORE:
        warnings.warn(
            f"{name} was written by an earlier version, without checksums: whether it and the stages are as they were "
            "written cannot be known. Export them again",
            AnytimeWarning,
            stacklevel=3,  # who calls load
        )
    elif json.loads(seal(document))["checksum"] != document.get("checksum"):
        raise ArtifactError(f"{name} is damaged: it does not have the checksum that was written")
    try:
        chain = Chain(
            tuple(map(str, document["inputs"])),
            tuple(map(_stage, document["stages"])),
            {str(key): _type(value) for key, value in document["values"].items()},
            None if document["batch"] is None else str(document["batch"]),
            decode_signature(document["signature"]),
            decode_batch_range(document.get("batch_range", [1, None])),
        )
        _check_names(chain)
        policy = None if document["policy"] is None else policy_from_dict(document["policy"])
        formats = tuple(map(str, document["formats"]))
        if not formats or not {"pt2", "onnx"}.issuperset(formats):
            raise ValueError(f"the formats {formats!r} are not known")
        kept = None if found == _BEFORE else {str(key): str(value) for key, value in document["checksums"].items()}
        return Manifest(chain, formats, policy, kept)
    except (AnytimeError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error!r}") from error


def _stage(data: Mapping[str, Any]) -> Stage:
    level = data["level"]
    cost = Cost(*(int(level[field]) for field in Cost._fields))
    return Stage(
        Level(int(level["index"]), str(level["name"]), cost),
        tuple(map(str, data["reads"])),
        tuple(map(str, data["gives"])),
        int(data["macs"]),
    )


def _type(data: Mapping[str, Any]) -> TensorType:
    return TensorType(tuple(Size.parse(str(size)) for size in data["shape"]), dtype_of(data["dtype"]))


def _check_names(chain: Chain) -> None:
    """Every stage reads what is there by then, and everything has a type."""
    if not chain.stages:
        raise ValueError("there are no stages")
    known = set(chain.inputs)
    for stage in chain.stages:
        missing = [name for name in stage.reads if name not in known]
        known.update(stage.gives)
        if missing or not stage.gives:
            raise ValueError(
                f"a stage reads {missing[0]!r}, which nothing gives" if missing else "a stage gives nothing"
            )
    if not known <= chain.values.keys():
        raise ValueError(f"{min(known - chain.values.keys())!r} has no type")
