"""Folders of stages with a manifest: read, sealed anew, damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from anytimeify.early_exit.document import MANIFEST, seal
from anytimeify.io.checksums import of_file
from tests.fuzz.loader import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_text

__all__ = ["Document", "damage", "edited", "read"]

Document: TypeAlias = dict[str, Any]
_WAYS = ("manifest", "manifest", "manifest", "text", "unsealed", "bytes", "swap", "sealed swap", "drop")


def read(folder: Path) -> Document:
    """The manifest."""
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


def damage(random: Random, folder: Path, others: Sequence[Document] = ()) -> tuple[str, bool]:
    """Changes, exchanges or cuts off what is in the folder: in words, and whether the manifest fits it."""
    way, document = random.choice(_WAYS), read(folder)
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    one, other = random.choice(files), random.choice(files)
    what, fits = way, False
    if way in ("manifest", "unsealed"):
        what = "; ".join(mutate_json(random, document, others) for _ in range(random.choice((1, 1, 2))))
        if way == "manifest":
            fits = _sealed(folder, document)
        else:
            (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
    elif way == "text":
        text = mutate_text(random, (folder / MANIFEST).read_text())
        (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    elif way == "bytes":
        data, what = mutate_bytes(random, one.read_bytes(), [other.read_bytes()])
        one.write_bytes(data)
        what = f"{one.name}: {what}"
    elif way == "drop":
        one.unlink()
        what = one.name
    else:
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
        what = f"{one.name} {other.name}"
        fits = way == "sealed swap" and _sealed(folder, document)
    return f"{way}: {what}", fits


def edited(change: Callable[[Document], object], original: str, *, sealed: bool) -> Callable[[Path, Path], Case]:
    """A folder with something else in its manifest."""

    def craft(originals: Path, folder: Path) -> Case:
        target = Path(shutil.copytree(originals / original, folder / "case"))
        document = read(target)
        change(document)
        if not sealed or not _sealed(target, document):
            (target / MANIFEST).write_text(json.dumps(document))
        return Case(target, original, "made by hand", sealed)

    return craft
