"""Folders of stages: `stages.json`, and the files beside it changed, exchanged and cut off."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from anytimeify import Confidence, Staged
from anytimeify.staged import load
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY
from tests.fuzz.stages import Document, damage, edited, read
from tests.staged.nets import images, net_with_exits

__all__ = ["LOADER"]


def _make(folder: Path) -> None:
    for name, kind in (("pt2", "pool"), ("onnx", "ensemble")):
        staged = net_with_exits(kind).staged()
        staged.policy = Confidence(threshold=(0.25, 0.35), temperature=(1.5, 1.0, 2.0))
        staged.export(folder / name, (name,))


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name = random.choice(names)
    target = Path(shutil.copytree(originals / name, folder / "case"))
    what, sealed = damage(random, target, [read(originals / other) for other in names])
    return Case(target, name, what, sealed)


def _load(path: Path) -> Staged:
    return load(path, threads=1)


def _results(staged: Staged) -> Results:
    (x,) = images(4)
    found: dict[str, Tensor | str] = {
        "levels": str(staged.levels),
        "policy": str(staged.policy),
        "macs": str(staged.macs),
    }
    with torch.no_grad():
        for level, prediction in staged.stream(x):
            found[f"level {level.index}"] = prediction
        found["prediction"], found["exits"] = staged(x)
    return found


def _exchanged(document: Document) -> None:
    one, other = document["stages"][1], document["stages"][2]
    one["reads"], other["reads"] = other["reads"], one["reads"]


def _outside(document: Document) -> None:
    document["checksums"]["../originals"] = "0"


_edited = partial(edited, original="onnx")

LOADER = Loader(
    "stages",
    _make,
    _mutate,
    _load,
    _results,
    {
        "another threshold": _edited(lambda document: document["policy"].update(threshold=[0.9, 0.9]), sealed=False),
        "another cost": _edited(lambda document: document["stages"][0]["level"].update(macs=1), sealed=False),
        "samples in another dimension": _edited(lambda document: document.update(batch=None), sealed=False),
        "a stage left out": _edited(lambda document: document["stages"].pop(0), sealed=False),
        "stages exchanged": _edited(_exchanged, sealed=False),
        "no checksums": _edited(lambda document: document.pop("checksums"), sealed=False),
        "code as an input": _edited(lambda document: document["signature"].update(names=[CANARY]), sealed=True),
        "code as a size": _edited(lambda document: document["values"]["x"].update(shape=[CANARY]), sealed=True),
        "a file outside": _edited(_outside, sealed=True),
        "infinite costs": _edited(lambda document: document["stages"][0].update(macs=float("inf")), sealed=True),
    },
)
