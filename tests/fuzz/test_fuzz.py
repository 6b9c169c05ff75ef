"""Nothing that a file says runs code, raises anything raw, takes for ever, or changes results without a word."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.fuzz.audit import _harmless
from tests.fuzz.loader import loaders
from tests.fuzz.misbehaving import EXPECTED
from tests.source_files import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are read from /proc")


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m tests.fuzz`, in a process that has no threads yet and may fork."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


LONG = ("run", "served", "stages")  # what they read takes seconds to make


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(sorted(loaders().keys() - set(LONG)), id="quick"),
        pytest.param(LONG, id="long", marks=pytest.mark.slow),
    ],
)
def test_what_was_made_by_hand_does_nothing(names: Sequence[str]) -> None:
    done = fuzz("--crafted", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("made by hand") + done.stdout.count("{") >= len(names)


@pytest.mark.slow
def test_the_harness_notices() -> None:
    done = fuzz("misbehaving", "--crafted")
    assert re.findall(r"^\d+ (\w+):", done.stdout, re.MULTILINE) == EXPECTED, done.stdout + done.stderr
    assert done.returncode == 1


def test_special_names_have_two_underscores_at_the_end() -> None:
    assert not _harmless("x.__init__.__globals__", "<eval_with_key>.1")
    assert not _harmless("x.__class__", "<eval_with_key>.1")
    assert _harmless("x.__init___.head(y)", "<eval_with_key>.1")  # a part of a network, under another name


@pytest.mark.slow
def test_a_number_stands_for_a_case() -> None:
    first, again = (
        [re.sub(r"/\S+/cases", "cases", line) for line in fuzz("compressed", "--only", "7").stdout.splitlines()[:2]]
        for _ in range(2)
    )
    assert first == again
    assert first


@pytest.mark.slow
@pytest.mark.parametrize("loader", sorted(loaders()))
def test_nothing_happens(loader: str) -> None:
    done = fuzz(loader, "--count", "10000")
    assert done.returncode == 0, done.stdout + done.stderr
