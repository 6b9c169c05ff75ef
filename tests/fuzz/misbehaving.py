"""A loader that does everything that a loader must not do, which the harness has to notice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from anytimeify.errors import ArtifactError
from tests.fuzz.loader import Case, Loader, Results

__all__ = ["EXPECTED", "LOADER"]


def _refuse() -> None:
    raise ArtifactError("no")


def _raw() -> None:
    raise OverflowError("no")


def _evaluate() -> None:
    eval("__import__('os').getpid()")


def _open() -> None:
    Path("/dev/null").open("w").close()


def _allocate() -> None:
    torch.ones(400 << 20, dtype=torch.uint8)


def _hide_memory() -> None:
    try:
        torch.ones(1 << 50)
    except RuntimeError as error:
        raise ArtifactError("no") from error


def _hang() -> None:
    while True:
        pass


def _die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


ACTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "refuses": (_refuse, "refused"),
    "raises": (_raw, "raw"),
    "leaves": (sys.exit, "raw"),
    "evaluates": (_evaluate, "code"),
    "unpickles": (lambda: pickle.loads(b"cos\ngetpid\n."), "code"),
    "starts a process": (lambda: subprocess.run(["true"], check=False), "code"),
    "writes": (_open, "code"),
    "allocates": (_allocate, "memory"),
    "fails to allocate": (_hide_memory, "memory"),
    "changes": (lambda: None, "changed"),
    "dies": (_die, "died"),
    "hangs": (_hang, "hang"),
    "goes on": (_refuse, "refused"),
}
EXPECTED = [kind for _, kind in ACTIONS.values()]


def _make(folder: Path) -> None:
    (folder / "original").write_text("")


def _load(path: Path) -> str:
    text = path.read_text()
    if text:
        ACTIONS[text][0]()
    return text


def _results(text: str) -> Results:
    return {"text": text}


def _craft(name: str) -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        (folder / "case").write_text(name)
        return Case(folder / "case", "original", "made by hand")

    return craft


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    return _craft(random.choice(list(ACTIONS)))(originals, folder)


LOADER = Loader("misbehaving", _make, _mutate, _load, _results, {name: _craft(name) for name in ACTIONS}, seconds=1)
