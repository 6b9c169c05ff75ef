"""Which backbones are meant: names, patterns, and lists in JSON files."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PREFIXES", "Backbone", "backbones", "read_list"]

PREFIXES = ("timm", "torchvision", "hf")


@dataclass(frozen=True)
class Backbone:
    """A name such as `timm:resnet50`; size of one input and family where a list says them, and the list's name."""

    name: str
    input_size: tuple[int, ...] | None = None
    family: str = ""
    listed: str = ""


def read_list(file: Path) -> list[Backbone]:
    """A JSON list of names, or of objects with `model` and perhaps `input_size` and `family`; a model without a
    prefix is one of timm. Where objects tell their `params`, small ones come first."""
    rows: list[Any] = [{"model": row} if isinstance(row, str) else row for row in json.loads(file.read_text())]
    rows.sort(key=lambda row: row.get("params", 0))
    return [
        Backbone(
            row["model"] if ":" in row["model"] else f"timm:{row['model']}",
            tuple(row["input_size"]) if row.get("input_size") else None,
            row.get("family", ""),
            file.stem,
        )
        for row in rows
    ]


def backbones(chosen: Sequence[str], names: Callable[[Sequence[str]], dict[str, list[str]]]) -> list[Backbone]:
    """Each of `chosen` is a file of `read_list`, or `PREFIX:NAME` or `PREFIX:PATTERN`; `names` lists the names behind
    prefixes and is asked only for patterns. Raises `ValueError` for what names nothing."""
    prefixes = sorted({one.partition(":")[0] for one in chosen if _is_pattern(one)})
    known = names(prefixes) if prefixes else {}
    found: list[Backbone] = []
    for one in chosen:
        if one.endswith(".json"):
            found += read_list(Path(one))
        elif _is_pattern(one):
            kind, _, pattern = one.partition(":")
            matching = [name for name in known.get(kind, ()) if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"{one!r} names no backbone")
            found += [Backbone(f"{kind}:{name}") for name in matching]
        elif ":" in one:
            found.append(Backbone(one))
        else:
            raise ValueError(f"{one!r}: expected a .json file, or one of {_listed(PREFIXES)} and a name or pattern")
    return list({backbone.name: backbone for backbone in found}.values())


def _is_pattern(text: str) -> bool:
    return text.partition(":")[0] in PREFIXES and any(sign in text for sign in "*?[")


def _listed(prefixes: Iterable[str]) -> str:
    return ", ".join(f"{prefix}:" for prefix in prefixes)
