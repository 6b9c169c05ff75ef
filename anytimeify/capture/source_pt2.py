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

from anytimeify._torch import quiet_exporter
from anytimeify.capture.pt2 import Refused, read_program
from anytimeify.capture.source import Source, SourceKind, existing_file
from anytimeify.errors import ArtifactError

__all__ = ["KIND", "load_exported"]


def load_exported(path: str | Path, *, trust_pickle: bool = False) -> ExportedProgram:
    """A saved program. `ArtifactError` when the file is missing, damaged, of another kind, or holds what may run code.

    `trust_pickle=True` leaves the reading to torch, which runs the code that a file holds: only for authors you trust.
    """
    file = existing_file(str(path))
    damaged = f"'{file}' is damaged or no exported program"
    try:
        if not trust_pickle and _written_by_old_torch(file):
            raise ArtifactError(
                f"'{file}' was written by a torch older than 2.9, in a form that is unpickled. Save it again with "
                "torch.export.save, or, if you trust its author, pass --trust-pickle (trust_pickle=True)."
            )
        with warnings.catch_warnings(), quiet_exporter():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own buffers
            return torch.export.load(file) if trust_pickle else read_program(file)
    except (ArtifactError, MemoryError):
        raise
    except Refused as error:
        raise ArtifactError(
            f"'{file}' is not read, for it may run code: {error}. If you trust its author, pass --trust-pickle "
            "(trust_pickle=True); otherwise save it again with torch.export.save."
        ) from error
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{damaged}: {error}. Copy it again, or save it again with torch.export.save.") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"{damaged} of this version of torch ({type(error).__name__}: {first}). Save it again with "
            "torch.export.save."
        ) from error


def _written_by_old_torch(file: Path) -> bool:
    """The forms of torch 2.1 to 2.8, with pickled weights."""
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2] or name for name in archive.namelist()}
    return not names.isdisjoint(
        {"serialized_exported_program.json", "serialized_state_dict.pt", "data/weights/model.pt"}
    )


def _load(path: str, trust_pickle: bool) -> Source:
    return Source(load_exported(path, trust_pickle=trust_pickle), None, Path(path).stem)


KIND = SourceKind("model.pt2", _load, suffixes=(".pt2",))
