"""What the name of a model stands for, and the table entry that a kind of source fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.export import ExportedProgram

from anytimeify.capture.inputs import CallInputs
from anytimeify.errors import ArtifactError, first_line

__all__ = ["InputSizes", "Source", "SourceKind", "existing_file", "no_pretrained"]


InputSizes: TypeAlias = Mapping[str, int | float | Sequence[int]]


@dataclass(frozen=True)
class Source:
    """A model ready for `capture`, and the inputs that its source tells, if it does."""

    model: nn.Module | ExportedProgram
    example_inputs: Any = None
    name: str = ""
    with_inputs: Callable[[InputSizes], Source] | None = None  # of a kind that knows its inputs by name


@dataclass(frozen=True)
class SourceKind:
    """One kind of source: what a file here calls its `KIND`.

    `load` gets what follows the prefix, or the whole path, and whether a pickle is trusted. It has a prefix, suffixes
    or a pattern."""

    example: str  # as help and error messages show it
    load: Callable[[str, bool], Source]
    prefix: str = ""  # "timm" for "timm:NAME"
    suffixes: tuple[str, ...] = ()  # (".pt2",) for files
    pattern: str = ""  # of what no other kind takes, and no file is called
    inputs: Callable[[nn.Module], CallInputs | None] | None = None  # of a model that tells by itself what it takes
    notes: Callable[[nn.Module], tuple[str, ...]] | None = None  # what a report says of a model of this kind
    shapes: Callable[[str], Source] | None = None  # the model without values, where those are not needed
    pretrained: Callable[[str], Source] | None = None  # the model with the weights that its library has for it

    def matches(self, source: str) -> bool:
        if self.prefix:
            return source.startswith(self.prefix + ":")
        if self.pattern:
            return re.fullmatch(self.pattern, source) is not None and not Path(source).exists()
        return source.lower().endswith(self.suffixes)


def no_pretrained(source: str, error: BaseException) -> ArtifactError:
    """What a user reads where a library does not give its weights: mostly that it cannot download them."""
    reason = first_line(error)[:200]
    return ArtifactError(
        f"There are no pretrained weights of '{source}' here: they are neither in the cache of its library, nor could "
        f"it download them ({type(error).__name__}: {reason}). Without --pretrained it has random weights, with "
        "--checkpoint FILE those of a file."
    )


def existing_file(path: str) -> Path:
    """`path` as a file that is there; `ArtifactError` otherwise."""
    file = Path(path)
    if not file.exists():
        raise ArtifactError(f"There is no file '{path}'. Check the path.")
    if not file.is_file():
        raise ArtifactError(f"'{path}' is a folder, not a file. Name the file in it.")
    return file
