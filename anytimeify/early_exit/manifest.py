"""`stages.json`: what a folder of stages says of itself, for the loader here and for runners in other languages
(docs/staged_format.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anytimeify.early_exit.cascade import Chain, Stage
from anytimeify.early_exit.document import BEFORE, FORMAT, parse, seal, stage_file
from anytimeify.early_exit.policies import ExitPolicy, policy_from_dict, policy_to_dict
from anytimeify.errors import AnytimeError, ArtifactError
from anytimeify.io import checksums
from anytimeify.ir import Cost, Level, Size, TensorType
from anytimeify.storage.graphs import decode_batch_range, decode_signature, dtype_of, encode_signature

__all__ = ["Manifest", "decode", "encode"]


@dataclass(frozen=True)
class Manifest:
    """The chain, the formats that its stages were written in, the policy, and the checksums of all files beside it."""

    chain: Chain
    formats: tuple[str, ...]
    policy: ExitPolicy | None
    checksums: Mapping[str, str] | None = field(default_factory=dict)  # by name; None: from before there were any


def encode(chain: Chain, formats: Sequence[str], policy: ExitPolicy | None, folder: Path | None = None) -> str:
    """The text of the file, for a `folder` in which all others are there."""
    files = sorted(folder.iterdir()) if folder is not None else []
    document = {
        "format": FORMAT,
        "formats": list(formats),
        "scheme": chain.scheme,
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
                "level": {
                    "index": stage.level.index,
                    "name": stage.level.name,
                    "number": stage.level.number,
                    **stage.level.cost._asdict(),
                },
            }
            for index, stage in enumerate(chain.stages)
        ],
        "policy": None if policy is None else policy_to_dict(policy),
        "checksums": {file.name: checksums.of_file(file) for file in files},  # SHA-256
    }
    return seal(document)


def decode(text: str, name: str) -> Manifest:
    """The inverse. `ArtifactError`, which calls the file `name`, where the text is damaged or of another format."""
    document = parse(text, name)
    try:
        chain = Chain(
            tuple(map(str, document["inputs"])),
            tuple(map(_stage, document["stages"])),
            {str(key): _type(value) for key, value in document["values"].items()},
            None if document["batch"] is None else str(document["batch"]),
            decode_signature(document["signature"]),
            decode_batch_range(document.get("batch_range", [1, None])),
            str(document.get("scheme", "")),
        )
        _check_names(chain)
        policy = None if document["policy"] is None else policy_from_dict(document["policy"])
        formats = tuple(map(str, document["formats"]))
        if not formats or not {"pt2", "onnx"}.issuperset(formats):
            raise ValueError(f"the formats {formats!r} are not known")
        kept = (
            None
            if document["format"] == BEFORE
            else {str(key): str(value) for key, value in document["checksums"].items()}
        )
        return Manifest(chain, formats, policy, kept)
    except (AnytimeError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error!r}") from error


def _stage(data: Mapping[str, Any]) -> Stage:
    level = data["level"]
    cost = Cost(*(int(level[field]) for field in Cost._fields))
    number = level.get("number")
    return Stage(
        Level(int(level["index"]), str(level["name"]), cost, number=None if number is None else float(number)),
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
