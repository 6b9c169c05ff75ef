"""A child process with a time limit and a reading of its peak memory.

Nothing heavy is imported here: on Linux the peak of a child starts at that of the process that forked it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Ended", "Say", "ask", "asked", "forked", "run"]

ROOT = Path(__file__).parents[2]
Say: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Tells the parent what was found."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code`: its exit status, negative for a signal; `last`: its last line on stderr.

    `cpu_seconds` far below `seconds` says that it was kept from running: stopped, or on a machine that others use."""

    code: int
    timed_out: bool
    seconds: float
    cpu_seconds: float
    peak_mib: float
    last: str


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a command to its end or to the time limit, when it and everything that it started are killed."""
    expired = threading.Event()
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        def expire() -> None:
            expired.set()
            kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
            kill()
        errors.seek(0)
        lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    seconds = time.monotonic() - start
    return _ended(child.returncode, expired.is_set(), seconds, usage, lines[-1] if lines else "")


def forked(function: Callable[[], None], seconds: float) -> Ended:
    """Runs a function in a fork of this process, to its end or to the time limit."""
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    expired = False
    found, status, usage = os.wait4(pid, os.WNOHANG)
    while not found:
        time.sleep(0.05)
        if not expired and time.monotonic() - start > seconds:
            expired = True
            os.kill(pid, signal.SIGKILL)
        found, status, usage = os.wait4(pid, os.WNOHANG)
    return _ended(os.waitstatus_to_exitcode(status), expired, time.monotonic() - start, usage, "")


def _ended(code: int, expired: bool, seconds: float, usage: resource.struct_rusage, last: str) -> Ended:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Ended(code, expired, seconds, usage.ru_utime + usage.ru_stime, round(usage.ru_maxrss / unit, 1), last)


def ask(
    module: str, task: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Ended]:
    """Runs `python -m module TASK FILE`, where the child appends what it finds to FILE, an object a line.

    Returns all of it as one object, also that of a child which did not get to its end."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.jsonl"
        answer.touch()
        ended = run([sys.executable, "-m", module, json.dumps(task), str(answer)], seconds, environment)
        found: dict[str, Any] = {}
        for line in answer.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # the last line of a child that was killed while it wrote
                found.update(json.loads(line))
    return found, ended


def asked() -> tuple[dict[str, Any], Say]:
    """In the child: the task, and how to answer."""
    file = Path(sys.argv[2])

    def say(found: Mapping[str, Any]) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(found) + "\n")

    return json.loads(sys.argv[1]), say
