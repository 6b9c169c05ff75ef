"""Timings on the disk, so that what was measured once is not measured again.

A timing is a small JSON file, called by a hash of all that it depends on: the graph, the shapes of its tensors, the
device, the runtime and its version, threads, the batch. It lies in `$XDG_CACHE_HOME/anytimeify`, by default
`~/.cache/anytimeify`; `ANYTIMEIFY_CACHE` names another folder, or is `off`. The folder may be deleted at any time. What
cannot be read counts as not there, and what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from anytimeify.errors import ArtifactError
from anytimeify.io import checksums
from anytimeify.io.files import regular_file, replaced_file
from anytimeify.measure.timing import Timing

__all__ = ["Key", "folder", "read", "write"]

Key: TypeAlias = Mapping[str, object]
"""Everything that a timing depends on, as plain data."""


def folder() -> Path | None:
    """Where timings lie; None where they are not kept."""
    chosen = os.environ.get("ANYTIMEIFY_CACHE")
    if chosen:
        return None if chosen == "off" else Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # nobody's home
        return Path(base if base and Path(base).is_absolute() else Path.home() / ".cache") / "anytimeify"
    return None


def read(key: Key) -> Timing | None:
    """The timing of a key, if there is one."""
    file = _file(key)
    if file is None:
        return None
    try:
        document = json.loads(regular_file(file).read_text(encoding="utf-8"))
        if document["key"] != json.loads(json.dumps(key)):
            return None
        found = Timing(float(document["median_ms"]), float(document["p99_ms"]), int(document["runs"]))
    except (ArtifactError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return found if 0 < found.median_ms <= found.p99_ms < float("inf") and found.runs > 0 else None


def write(key: Key, timing: Timing) -> None:
    """Keeps a timing in place of what was there."""
    file = _file(key)
    if file is None:
        return
    with contextlib.suppress(OSError, ArtifactError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as temporary:
            temporary.write_text(json.dumps({**asdict(timing), "key": key}, indent=1) + "\n", encoding="utf-8")


def _file(key: Key) -> Path | None:
    place = folder()
    return None if place is None else place / f"latency-{checksums.of_data(key)[:32]}.json"
