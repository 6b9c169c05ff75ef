"""Timings on the disk: found again by all that they depend on, and never in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from anytimeify.measure import cache
from anytimeify.measure.timing import Timing

KEY = {"graph": "abc", "device": "a processor", "threads": 1}
TIMING = Timing(1.5, 2.5, 100)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ANYTIMEIFY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "anytimeify"


def test_a_timing_is_found_by_all_of_its_key(folder: Path) -> None:
    assert cache.read(KEY) is None
    cache.write(KEY, TIMING)
    assert cache.read(dict(reversed(KEY.items()))) == TIMING
    assert all(cache.read({**KEY, name: 2}) is None for name in KEY)
    cache.write(KEY, Timing(3.0, 4.0, 5))
    assert cache.read(KEY) == Timing(3.0, 4.0, 5)
    assert len(list(folder.iterdir())) == 1  # nothing temporary is left


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"median_ms": "x"}', "\udcff", "[" * 100_000])
def test_what_is_damaged_is_not_there(folder: Path, text: str) -> None:
    cache.write(KEY, TIMING)
    (file,) = folder.iterdir()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert cache.read(KEY) is None
    cache.write(KEY, TIMING)
    assert cache.read(KEY) == TIMING


@pytest.mark.parametrize("field", ["median_ms", "p99_ms", "runs"])
def test_numbers_beyond_all_are_not_there(folder: Path, field: str) -> None:
    cache.write(KEY, TIMING)
    (file,) = folder.iterdir()
    written = json.loads(file.read_text())
    for wrong in ("1" + "0" * 400, "Infinity", "NaN", "-1", "0"):
        file.write_text(json.dumps({**written, field: "wrong"}).replace('"wrong"', wrong))
        if (field, wrong) != ("runs", "1" + "0" * 400):  # so many, then
            assert cache.read(KEY) is None


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    cache.write(KEY, TIMING)
    (file,) = folder.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert cache.read(KEY) is None


def test_values_that_no_run_takes_are_not_there(folder: Path) -> None:
    for wrong in (float("nan"), float("inf"), -1.0, 0.0):
        cache.write(KEY, Timing(wrong, 1.0, 1))
        assert cache.read(KEY) is None


def test_folders(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == folder
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder() == Path.home() / ".cache" / "anytimeify"
    monkeypatch.setenv("ANYTIMEIFY_CACHE", str(tmp_path / "mine"))
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.setenv("ANYTIMEIFY_CACHE", "off")
    cache.write(KEY, TIMING)
    assert cache.read(KEY) is None


def test_a_folder_that_cannot_be_made_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANYTIMEIFY_CACHE", str(tmp_path / "file"))
    cache.write(KEY, TIMING)
    assert cache.read(KEY) is None
