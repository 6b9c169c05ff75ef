"""`model.pt2`: a program saved by `torch.export.save`.

`torch.export.load` unpickles, compiles and evaluates parts of the file, so that one can run any code. Here a file is
read part by part, and only if every part is of a kind that runs no code (`capture.pt2`), unless its author is trusted.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from anytimeify._torch import load_pt2, quiet_exporter
from anytimeify.capture.pt2 import MODEL, RefusedError, read_program
from anytimeify.capture.sources.source import Source, SourceKind, existing_file
from anytimeify.errors import ArtifactError

__all__ = ["KIND", "load_exported"]


def load_exported(path: str | Path, *, trust_pickle: bool = False, model: str = MODEL) -> ExportedProgram:
    """A saved program; of several in a file, the one that is called `model`. `ArtifactError` when the file is missing,
    damaged, of another kind, or holds what may run code.

    `trust_pickle=True` leaves the reading to torch, which runs the code that a file holds: only for authors you trust.
    """
    file = existing_file(str(path))
    damaged = f"'{file}' is damaged or no exported program"
    try:
        names = _members(file)
        if not trust_pickle and not names.isdisjoint(_OLD):
            raise ArtifactError(
                f"'{file}' was written by an older torch, in a form that is unpickled. Save it again with "
                "torch.export.save, or, if you trust its author, pass --trust-pickle (trust_pickle=True)."
            )
        if not names & {*_OLD, "archive_format"}:
            raise ArtifactError(f"{damaged}: it is another archive. Save the model with torch.export.save.")
        with warnings.catch_warnings(), quiet_exporter():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own buffers
            if not trust_pickle:
                return read_program(file, model)
            return torch.export.load(file) if model == MODEL else load_pt2(file)[model]
    except (ArtifactError, MemoryError):
        raise
    except RefusedError as error:
        raise ArtifactError(
            f"'{file}' is not read, for only parts of known kinds run no code: {error}. If you trust its author, pass "
            "--trust-pickle (trust_pickle=True)."
        ) from error
    except NotImplementedError as error:  # a class of outputs that nobody has registered
        raise ArtifactError(
            f"'{file}' cannot be put together: {error} Import the library that defines it first."
        ) from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ArtifactError(f"{damaged}: {error}. Copy it again, or save it again with torch.export.save.") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"{damaged} of this version of torch ({type(error).__name__}: {first}). Save it again with "
            "torch.export.save."
        ) from error


# Parts of archives that torch wrote before it kept weights as plain bytes.
_OLD = frozenset({"serialized_exported_program.json", "serialized_state_dict.pt", "data/weights/model.pt"})


def _members(file: Path) -> set[str]:
    """The names in an archive, without the folder that holds them all."""
    with zipfile.ZipFile(file) as archive:
        return {part for name in archive.namelist() for part in (name, name.partition("/")[2])}


def _load(path: str, trust_pickle: bool) -> Source:
    return Source(load_exported(path, trust_pickle=trust_pickle), None, Path(path).stem)


KIND = SourceKind("model.pt2", _load, suffixes=(".pt2",))
