"""Timings that are kept on the disk: what cannot be read is measured anew, and what is read is a timing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from anytimeify.errors import ArtifactError
from anytimeify.measure import cache
from anytimeify.measure.timing import Timing
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, mutate_bytes, mutate_json, mutate_text

__all__ = ["LOADER"]

KEY: dict[str, Any] = {
    "graph": "5f0c",
    "inputs": [[[1, 3, 32, 32], "torch.float32"]],
    "device": "a processor, 2 cores",
    "runtime": "onnxruntime 1.31",
    "threads": None,
}


def _kept_in(folder: Path) -> Any:
    """Timings lie there, whatever the environment says."""
    return patch.object(cache, "folder", lambda: folder)


def _make(folder: Path) -> None:
    (folder / "kept").mkdir()
    with _kept_in(folder / "kept"):
        cache.write(KEY, Timing(7.25, 9.5, 120))


def _original(originals: Path) -> Path:
    (file,) = (originals / "kept").iterdir()
    return file


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    file = _original(originals)
    data = file.read_bytes()
    way = random.choice(("document", "document", "text", "bytes"))
    if way == "document":
        document = json.loads(data)
        what = "; ".join(mutate_json(random, document) for _ in range(random.choice((1, 1, 2))))
        data = json.dumps(document).encode("utf-8", "surrogatepass")
    elif way == "text":
        data, what = mutate_text(random, data.decode(), TOKENS).encode("utf-8", "surrogatepass"), "text"
    else:
        data, what = mutate_bytes(random, data)
    return _case(folder, file.name, data, f"{way}: {what}")


TOKENS = ("1e999", "NaN", "Infinity", "-1", "0", "1" * 500, "[" * 5000, "null", '"', "\\ud800", "1e-400", "true")


def _case(folder: Path, name: str, data: bytes, what: str) -> Case:
    (folder / "kept").mkdir()
    (folder / "kept" / name).write_bytes(data)
    return Case(folder / "kept", "kept", what, sealed=True)


def _load(path: Path) -> Timing:
    with _kept_in(path):
        found = cache.read(KEY)
    if found is None:
        raise ArtifactError("it is measured anew")
    assert 0 < found.median_ms <= found.p99_ms < float("inf"), found
    assert found.runs > 0, found
    return found


def _results(found: Timing) -> Results:
    return {"timing": str(found)}


def _crafted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        file = _original(originals)
        document = json.loads(file.read_text())
        change(document)
        return _case(folder, file.name, json.dumps(document).encode(), "made by hand")

    return craft


def _text(text: str) -> Callable[[Path, Path], Case]:
    return lambda originals, folder: _case(folder, _original(originals).name, text.encode(), "made by hand")


def _pipe(originals: Path, folder: Path) -> Case:
    """A reader would wait for ever."""
    (folder / "kept").mkdir()
    os.mkfifo(folder / "kept" / _original(originals).name)
    return Case(folder / "kept", "kept", "made by hand", sealed=True)


LOADER = Loader(
    "timing",
    _make,
    _mutate,
    _load,
    _results,
    {
        "beyond all numbers": _crafted(lambda document: document.update(median_ms=10**400)),
        "infinitely many runs": _crafted(lambda document: document.update(runs=float("inf"))),
        "no runs": _crafted(lambda document: document.update(runs=0)),
        "a percentile that is no number": _crafted(lambda document: document.update(p99_ms=float("nan"))),
        "less than nothing": _crafted(lambda document: document.update(median_ms=-1)),
        "code": _crafted(lambda document: document.update(median_ms=CANARY)),
        "of another network": _crafted(lambda document: document["key"].update(graph="other")),
        "deep brackets": _text("[" * 100_000),
        "no document": _text("7"),
        "a pipe": _pipe,
    },
)
