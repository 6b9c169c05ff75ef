"""`stages.json`: what a folder of stages says of itself, for the loader here and for runners in other languages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytimeify.encoding import decode_signature, dtype_of, encode_signature
from anytimeify.errors import AnytimeError, ArtifactError
from anytimeify.ir import Cost, Level, Size, TensorType
from anytimeify.policies import ExitPolicy, policy_from_dict, policy_to_dict
from anytimeify.staged.chain import Chain, Stage

__all__ = ["FORMAT", "MANIFEST", "Manifest", "decode", "encode", "stage_file"]

MANIFEST = "stages.json"
FORMAT = 1  # raised when a folder can no longer be read by the code before


@dataclass(frozen=True)
class Manifest:
    """The chain, the formats that its stages were written in, and the policy."""

    chain: Chain
    formats: tuple[str, ...]
    policy: ExitPolicy | None


def stage_file(index: int, format: str) -> str:
    """The name of a stage's file. Stages are numbered like the exits."""
    return f"stage-{index}.{format}"


def encode(chain: Chain, formats: Sequence[str], policy: ExitPolicy | None) -> str:
    """The text of the file."""
    document = {
        "format": FORMAT,
        "formats": list(formats),
        "batch": chain.batch,
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
    }
    return json.dumps(document, indent=2) + "\n"


def decode(text: str, name: str) -> Manifest:
    """The inverse. `ArtifactError`, which calls the file `name`, where the text is damaged or of another format."""
    try:
        document = json.loads(text)
        found = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{name} does not describe stages, or is damaged ({error!r})") from error
    if found != FORMAT:
        raise ArtifactError(
            f"{name} has format {found!r}, this version of anytimeify reads format {FORMAT}: load it with the version "
            "that wrote it, or a newer one"
        )
    try:
        chain = Chain(
            tuple(map(str, document["inputs"])),
            tuple(map(_stage, document["stages"])),
            {str(key): _type(value) for key, value in document["values"].items()},
            None if document["batch"] is None else str(document["batch"]),
            decode_signature(document["signature"]),
        )
        _check_names(chain)
        policy = None if document["policy"] is None else policy_from_dict(document["policy"])
        formats = tuple(map(str, document["formats"]))
        if not formats or not {"pt2", "onnx"}.issuperset(formats):
            raise ValueError(f"the formats {formats!r} are not known")
        return Manifest(chain, formats, policy)
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
