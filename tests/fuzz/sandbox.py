"""Loads in child processes with limits on memory and time, and what came of each.

The parent imports everything, then forks a child for a batch of cases. The child says which case it starts before it
loads it, so that a child that dies or hangs accuses the case it was at, and the next child goes on behind that.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from anytimeify.errors import AnytimeError
from tests.fuzz.audit import Watch
from tests.fuzz.loader import Case, Loader, Results

__all__ = ["FINE", "Verdict", "judge", "search"]

SPACE = 3 << 30  # bytes of addresses that a child may map beyond what its parent has
FINE = ("refused", "same", "another")


@dataclass(frozen=True)
class Verdict:
    """What came of one case: one of `FINE`, or `raw`, `code`, `changed`, `memory`, `hang`, `died`."""

    number: int
    kind: str
    what: str  # was done to the file
    detail: str = ""
    seconds: float = 0.0


def search(loader: Loader, folder: Path, numbers: Sequence[int], seed: int = 0, batch: int = 400) -> Iterator[Verdict]:
    """Makes and loads the cases of these numbers. `folder` is empty and gets the originals."""
    originals = _originals(loader, folder)

    def made(number: int, target: Path) -> Case:
        return loader.mutate(Random(f"{loader.name} {seed} {number}"), originals, target)

    yield from _in_children(loader, originals, list(numbers), made, batch)


def judge(loader: Loader, folder: Path) -> Iterator[Verdict]:
    """Loads what is `crafted`; cases are numbered in that order."""
    originals = _originals(loader, folder)
    crafts = list(loader.crafted.values())

    def made(number: int, target: Path) -> Case:
        return crafts[number](originals, target)

    yield from _in_children(loader, originals, list(range(len(crafts))), made, len(crafts))


def _originals(loader: Loader, folder: Path) -> Path:
    originals = folder / "originals"
    originals.mkdir(parents=True)
    torch.manual_seed(0)
    loader.make(originals)
    return originals


def _in_children(
    loader: Loader, originals: Path, numbers: list[int], made: Callable[[int, Path], Case], batch: int
) -> Iterator[Verdict]:
    while numbers:
        done = 0
        for verdict in _in_a_child(loader, originals, numbers[:batch], made):
            done += 1
            yield verdict
        numbers = numbers[done:]


def _in_a_child(
    loader: Loader, originals: Path, numbers: Sequence[int], made: Callable[[int, Path], Case]
) -> Iterator[Verdict]:
    """Forks, and yields a verdict for each number up to the first that the child does not survive."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        status = 1
        try:
            _child(loader, originals, numbers, made, writer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        try:
            yield from _verdicts(pipe, loader.seconds, child)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _verdicts(pipe: Any, seconds: float, child: int) -> Iterator[Verdict]:
    rest, number, what, ready = b"", -1, "", False
    worked, waited = 0.0, 0
    while True:
        if not select.select([pipe], [], [], seconds)[0]:
            waited += 1
            # On a busy machine it may not have had its turn: what counts is the time that it worked, unless it sleeps.
            if ready and (_worked(child) - worked > seconds or waited == 10):
                yield Verdict(number, "hang", what, f"more than {seconds} s", seconds)
                return
            continue
        data = pipe.read(1 << 16)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "kind" in message:
                yield Verdict(**message)
                number = -1
            elif "end" in message:
                return
            elif "broken" in message:
                raise RuntimeError(message["broken"])
            else:
                number, what, ready = message["start"], message["what"], True
                worked, waited = _worked(child), 0
        if not data:
            if number < 0 and not ready:
                raise RuntimeError("the child ended before its first case: an original cannot be loaded")
            yield Verdict(number, "died", what)
            return


def _worked(process: int) -> float:
    """Seconds of a processor that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(
    loader: Loader, originals: Path, numbers: Sequence[int], made: Callable[[int, Path], Case], writer: int
) -> None:
    def say(message: dict[str, Any]) -> None:
        os.write(writer, json.dumps(message).encode() + b"\n")

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expected = {path.name: loader.results(loader.load(path)) for path in sorted(originals.iterdir())}
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + SPACE,) * 2)
    watch, place = Watch(), originals.parent / "cases"
    for number in numbers:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            case = made(number, place)
        except Exception:  # of the harness itself
            say({"broken": f"case {number}: {traceback.format_exc()}"})
            return
        say({"start": number, "what": f"{case.original}: {case.what}"})
        kind, detail, seconds = _load(loader, case, expected[case.original], watch)
        say(asdict(Verdict(number, kind, f"{case.original}: {case.what}", detail[:600], round(seconds, 3))))
    say({"end": True})


def _load(loader: Loader, case: Case, expected: Results, watch: Watch) -> tuple[str, str, float]:
    before, start = _reset_peak(), time.perf_counter()
    kind, detail, problem = "another" if case.sealed else "same", "", None
    with watch.watching() as seen:
        try:
            loaded = loader.load(case.path)
        except BaseException as error:
            problem = error
    if isinstance(problem, AnytimeError):
        kind, detail = ("memory" if _lacked_memory(problem) else "refused"), f"{type(problem).__name__}: {problem}"
    elif problem is not None:
        kind, detail = "raw", "".join(traceback.format_exception(problem)[-3:])
    seconds = time.perf_counter() - start
    if kind == "same":
        difference = _difference(loader.results(loaded), expected)
        kind, detail = ("same", "") if difference is None else ("changed", difference)
    if (growth := _memory("VmHWM") - before) > loader.growth:
        kind, detail = "memory", f"{growth >> 20} MiB; {detail}"
    if seen:
        kind, detail = "code", "; ".join(seen)
    return kind, detail, seconds


def _difference(found: Results, expected: Results) -> str | None:
    """What differs in the results of a file that was changed and loaded all the same."""
    if found.keys() != expected.keys():
        return f"{sorted(found.keys() ^ expected.keys())}"
    for name, value in found.items():
        other = expected[name]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            alike = value.shape == other.shape and value.dtype == other.dtype
            if not alike or not torch.allclose(value, other, rtol=1e-6, atol=1e-7, equal_nan=True):
                return f"{name} has other values"
        elif value != other:
            return f"{name}: {str(value)[:200]} where it was {str(other)[:200]}"
    return None


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _memory(field: str) -> int:
    """Bytes: `VmSize` of addresses, `VmHWM` the peak of what lies in memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")
