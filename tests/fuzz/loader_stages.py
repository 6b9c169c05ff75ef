"""Folders of stages: `stages.json`, and the files beside it changed, exchanged and cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from anytimeify import Confidence, Staged
from anytimeify.early_exit.document import MANIFEST, seal
from anytimeify.io.checksums import of_file
from anytimeify.staged import load
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, mutate_bytes, mutate_json, mutate_text
from tests.staged.nets import images, net_with_exits

__all__ = ["LOADER"]

Document = dict[str, Any]


def _make(folder: Path) -> None:
    for name, kind in (("pt2", "pool"), ("onnx", "ensemble")):
        staged = net_with_exits(kind).staged()
        staged.policy = Confidence(threshold=(0.25, 0.35), temperature=(1.5, 1.0, 2.0))
        staged.export(folder / name, (name,))


def _document(folder: Path) -> Document:
    document: Document = json.loads((folder / MANIFEST).read_text())
    return document


def _sealed(folder: Path, document: Any) -> bool:
    """Writes a manifest whose checksums fit what is there; False where no file can hold it."""
    try:
        if isinstance(document, dict) and isinstance(document.get("checksums"), dict):
            present = {name: of_file(folder / name) for name in document["checksums"] if (folder / name).is_file()}
            document["checksums"].update(present)
        (folder / MANIFEST).write_text(seal(document), encoding="utf-8")
    except (TypeError, ValueError, OSError, AttributeError, RecursionError):
        return False
    return True


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name = random.choice(names)
    target = Path(shutil.copytree(originals / name, folder / "case"))
    way = random.choice(
        ("manifest", "manifest", "manifest", "text", "unsealed", "bytes", "swap", "sealed swap", "drop")
    )
    document, what, sealed = _document(target), way, False
    files = sorted(path for path in target.iterdir() if path.name != MANIFEST)
    one, other = random.choice(files), random.choice(files)
    if way in ("manifest", "unsealed"):
        others = [_document(originals / other) for other in names]
        what = "; ".join(mutate_json(random, document, others) for _ in range(random.choice((1, 1, 2))))
        if way == "manifest":
            sealed = _sealed(target, document)
        else:
            (target / MANIFEST).write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
    elif way == "text":
        text = mutate_text(random, (target / MANIFEST).read_text())
        (target / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    elif way == "bytes":
        data, what = mutate_bytes(random, one.read_bytes(), [other.read_bytes()])
        one.write_bytes(data)
        what = f"{one.name}: {what}"
    elif way == "drop":
        one.unlink()
    else:
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
        what = f"{way} {one.name} {other.name}"
        sealed = way == "sealed swap" and _sealed(target, document)
    return Case(target, name, f"{way}: {what}", sealed)


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


def edited(change: Callable[[Document], object], original: str = "onnx", *, sealed: bool) -> Callable[..., Case]:
    """A folder with something else in its manifest."""

    def craft(originals: Path, folder: Path) -> Case:
        target = Path(shutil.copytree(originals / original, folder / "case"))
        document = _document(target)
        change(document)
        if not sealed or not _sealed(target, document):
            (target / MANIFEST).write_text(json.dumps(document))
        return Case(target, original, "made by hand", sealed)

    return craft


def _exchanged(document: Document) -> None:
    one, other = document["stages"][1], document["stages"][2]
    one["reads"], other["reads"] = other["reads"], one["reads"]


def _outside(document: Document) -> None:
    document["checksums"]["../originals"] = "0"


LOADER = Loader(
    "stages",
    _make,
    _mutate,
    _load,
    _results,
    {
        "another threshold": edited(lambda document: document["policy"].update(threshold=[0.9, 0.9]), sealed=False),
        "another cost": edited(lambda document: document["stages"][0]["level"].update(macs=1), sealed=False),
        "samples in another dimension": edited(lambda document: document.update(batch=None), sealed=False),
        "a stage left out": edited(lambda document: document["stages"].pop(0), sealed=False),
        "stages exchanged": edited(_exchanged, sealed=False),
        "no checksums": edited(lambda document: document.pop("checksums"), sealed=False),
        "code as an input": edited(lambda document: document["signature"].update(names=[CANARY]), sealed=True),
        "code as a size": edited(lambda document: document["values"]["x"].update(shape=[CANARY]), sealed=True),
        "a file outside": edited(_outside, sealed=True),
        "infinite costs": edited(lambda document: document["stages"][0].update(macs=float("inf")), sealed=True),
    },
)
