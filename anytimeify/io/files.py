"""Files and folders as everything here reads and writes them.

Written whole or not at all: beside the target, in a temporary folder that is locked as long as its writer lives, then
moved into place when all of it is on the disk. What writers that were killed left in the same folder goes away with the
next write. Only regular files are read, and only regular files are replaced: never a pipe or a device. A symbolic link
stays, and its target is replaced; a file that is replaced keeps its mode.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anytimeify.errors import AnytimeError, ArtifactError, MissingExtraError, refusing

if sys.platform != "win32":  # there, what killed writers leave stays
    import fcntl

__all__ = ["new_file", "new_folder", "reading", "refuse_existing", "regular_file", "replaceable", "replaced_file"]

_PREFIX, _LOCK = ".anytimeify-", "lock"


# Reading.


def regular_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a file that is there. `ArtifactError` for what is missing, a folder, or neither: a pipe or a device
    would never end."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise ArtifactError(f"{file} {'does not exist' if missing else f'cannot be read: {error}'}") from error
    if stat.S_ISDIR(mode):
        raise ArtifactError(f"{file} is a folder: give the name of a file")
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{file} is a {_kind(mode)}, not a file")
    return file


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Around everything that is made of what a file says: whatever goes wrong is an `ArtifactError` that names it. A
    package that is missing stays a `MissingExtraError`."""
    try:
        with refusing(ArtifactError, f"{path} is damaged: it"):
            yield
    except MissingExtraError:
        raise
    except AnytimeError as error:
        text = str(error)
        raise ArtifactError(text if str(path) in text else f"{path}: {text}") from (error.__cause__ or error)


# Writing.


@contextmanager
def new_file(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A temporary name to write to; what is there moves to `path` when the block ends, and goes away if it fails.

    Files that the block writes beside it move too: a large ONNX model refers to `NAME.data`. Raises `ArtifactError` as
    `refuse_existing` does, before the block runs, and where nothing can be written. With `replace`, files that are
    there make room for the new ones when these are whole.
    """

    def check(target: Path) -> None:
        replaceable(target) if replace else refuse_existing(target)

    target = Path(path)
    check(target)
    with _beside(target) as folder:
        yield folder / target.name
        # What others refer to comes first.
        written = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
        for file in written:
            check(target.with_name(file.name))
            _synchronise(file)
        for file in written:
            os.replace(file, target.with_name(file.name))


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same where a file may be there already: it is replaced when the new one is whole.

    Raises `ArtifactError` for a folder, a pipe, a device and a file that may not be written. Other hard links to the
    old file keep what it held.
    """
    target = replaceable(Path(path))
    with _beside(target) as folder:
        yield folder / target.name
        _synchronise(folder / target.name)
        _as_before(folder / target.name, target)
        os.replace(folder / target.name, target)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` when the block ends, and goes away if it fails. With `replace`,
    a folder that is there is removed, with all that it holds, when the new one is whole.

    Raises `ArtifactError` as `new_file` does."""
    target = Path(path)
    if not (replace and target.is_dir() and not target.is_symlink()):
        refuse_existing(target)
    with _beside(target) as folder:
        whole = folder / target.name
        whole.mkdir()
        yield whole
        for place, _, files in os.walk(whole):
            for name in files:
                _synchronise(Path(place, name))
        if target.is_dir():
            os.rename(target, folder / "before")
        os.rename(whole, target)


def refuse_existing(path: str | os.PathLike[str], otherwise: str = "remove it or choose another name") -> None:
    """Raises `ArtifactError`, which says what to do `otherwise`, where `path` exists or its folder does not: nothing is
    overwritten unless it is asked for."""
    target = Path(path)
    if "\0" in str(target):
        raise ArtifactError(f"{str(target)!r} is no name of a file")
    if os.path.lexists(target):
        raise ArtifactError(f"'{target}' exists already. Nothing was written; {otherwise}.")
    _refuse_without_folder(target)


def replaceable(path: Path) -> Path:
    """The file that a path leads to through symbolic links: `ArtifactError` unless it may be written, or replaced."""
    try:
        target = Path(os.path.realpath(path))
        mode = path.stat().st_mode  # of the path as it is given: /dev/stdout leads to a pipe that has no path
    except FileNotFoundError:
        _refuse_without_folder(target)
        return target
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be written: {error}.") from error
    if stat.S_ISDIR(mode):
        raise ArtifactError(f"'{path}' is a folder: give the name of a file to write")
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"'{path}' is a {_kind(mode)}, not a file: it cannot be replaced by one")
    if not os.access(target, os.W_OK):
        raise ArtifactError(f"'{path}' may not be written: its mode is {stat.filemode(mode)}")
    return target


def _refuse_without_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise ArtifactError(f"There is no folder '{target.parent}' to write '{target.name}' to.")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "special file")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder in the folder of `target`, so that moving is renaming; those of dead writers go first."""
    try:
        _remove_litter(target.parent)
        folder, lock = _locked_folder(target.parent)
    except OSError as error:
        raise ArtifactError(f"'{target}' cannot be written: {error.strerror}.") from error
    try:
        inside = folder / "files"
        inside.mkdir()
        yield inside
        with contextlib.suppress(OSError):  # not every file system can, and the files are there
            _synchronise(target.parent)
    except OSError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"'{target}' cannot be written: {first}.") from error
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # somebody who cleans up was faster than the lock
            lock, held = _lock(folder)
            if held is not False and (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)


def _remove_litter(parent: Path) -> None:
    """Removes temporary folders that nobody holds the lock of. The lock of a process goes when it dies."""
    for folder in parent.glob(f"{_PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(OSError):  # another user's, or another was faster
            lock, held = _lock(folder)
            if held:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> tuple[int, bool | None]:
    """An open file in the folder, and whether it is locked now: False where another process has the lock, None where
    the file system has no locks, so that nobody knows."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    if sys.platform == "win32":
        return lock, None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return lock, False
    except OSError:
        return lock, None
    return lock, True


def _as_before(file: Path, target: Path) -> None:
    """Gives a file the owner, where one may, and the mode of the one that it replaces."""
    with contextlib.suppress(FileNotFoundError):
        before = target.stat()
        with contextlib.suppress(OSError):
            os.chown(file, before.st_uid, before.st_gid)
        os.chmod(file, stat.S_IMODE(before.st_mode))


def _synchronise(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
