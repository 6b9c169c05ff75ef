"""What is served without torch: a folder of ONNX stages, and what a file of several levels says of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch

from anytimeify.serving.backend import Backend
from anytimeify.serving.description import KEY
from anytimeify.serving.runner import made_up, open_levels, smallest_batch
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, mutate_json, mutate_text
from tests.fuzz.stages import Document, damage, edited
from tests.staged.nets import net_with_exits

__all__ = ["LOADER"]

STAGES, LEVELS = "stages", "levels.onnx"
LARGE = 1000  # samples in a batch


def _make(folder: Path) -> None:
    net = net_with_exits("pool")
    net.export(folder / STAGES, "staged")
    net.export(folder / LEVELS)


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    return random.choice((_in_stages, _in_levels))(random, originals, folder)


# Stages.


def _in_stages(random: Random, originals: Path, folder: Path) -> Case:
    target = Path(shutil.copytree(originals / STAGES, folder / STAGES))
    what, sealed = damage(random, target)
    return Case(target, STAGES, what, sealed)


# Levels: the document in the metadata. What else stands in the file is onnxruntime's to read.


def _in_levels(random: Random, originals: Path, folder: Path) -> Case:
    document = json.loads(_model(originals).metadata_props[0].value)
    if random.random() < 0.7:
        what = "; ".join(mutate_json(random, document) for _ in range(random.choice((1, 1, 2))))
        text = json.dumps(document)
    else:
        text, what = mutate_text(random, json.dumps(document)), "text"
    return _with_text(originals, folder, text, what)


def _model(originals: Path) -> onnx.ModelProto:
    return onnx.load(originals / LEVELS)


def _with_text(originals: Path, folder: Path, text: str, what: str) -> Case:
    model = _model(originals)
    assert model.metadata_props[0].key == KEY
    try:
        model.metadata_props[0].value = text
    except (UnicodeEncodeError, ValueError):  # half a surrogate
        what = f"nothing, for the file cannot hold it ({what})"
    (folder / LEVELS).write_bytes(model.SerializeToString())
    return Case(folder / LEVELS, LEVELS, what, sealed=True)


# Reading.


def _load(path: Path) -> Backend:
    """Opens levels, and runs them with noise, of a batch that memory holds: what cannot be run has to say so, too."""
    backend = open_levels(path, "onnxruntime", "cpu", 1, False)
    if smallest_batch(backend) < LARGE:
        _outputs(backend)
    return backend


def _outputs(backend: Backend) -> dict[str, Any]:
    given = [made_up(one, smallest_batch(backend)) for one in backend.inputs]
    return {str(place): one for place, one in enumerate(backend.stream(given))}


def _results(backend: Backend) -> Results:
    outputs = {name: torch.from_numpy(np.asarray(one)) for name, one in _outputs(backend).items()}
    return {"description": str(backend.description), **outputs}


def _stages(change: Callable[[Document], object], *, sealed: bool = True) -> Callable[[Path, Path], Case]:
    return edited(change, STAGES, sealed=sealed)


def _levels(change: Callable[[Document], object]) -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        document = json.loads(_model(originals).metadata_props[0].value)
        change(document)
        return _with_text(originals, folder, json.dumps(document), "made by hand")

    return craft


def _exchanged(document: Document) -> None:
    document["stages"].reverse()


LOADER = Loader(
    "served",
    _make,
    _mutate,
    _load,
    _results,
    {
        "a stage outside": _stages(lambda document: document["stages"][0]["files"].update(onnx="../levels.onnx")),
        "a stage that is a device": _stages(lambda document: document["stages"][0]["files"].update(onnx="/dev/zero")),
        "stages exchanged": _stages(_exchanged),
        "a stage left out": _stages(lambda document: document["stages"].pop(0), sealed=False),
        "no stages": _stages(lambda document: document.update(stages=[])),
        "a stage that gives nothing": _stages(lambda document: document["stages"][1].update(gives=[])),
        "a stage that reads more": _stages(lambda document: document["stages"][1]["reads"].append("x")),
        "code as a name": _stages(lambda document: document["stages"][0]["level"].update(name=CANARY)),
        "an enormous input": _stages(lambda document: document["values"]["x"].update(shape=[1, 3, 1 << 40, 8])),
        "an input of an unknown type": _stages(lambda document: document["values"]["x"].update(dtype="object")),
        "an endless batch": _stages(lambda document: document.update(batch_range=[1 << 60, None])),
        "a batch that is none": _stages(lambda document: document.update(batch_range=[-1, 0])),
        "infinite costs": _levels(lambda document: document["levels"][0].update(macs=float("inf"))),
        "more levels than there are": _levels(lambda document: document["levels"].extend(document["levels"])),
        "no levels": _levels(lambda document: document.update(levels=[])),
        "a batch from back to front": _levels(lambda document: document.update(batch=[4, 2])),
        "code as a scheme": _levels(lambda document: document.update(scheme=CANARY)),
    },
)
