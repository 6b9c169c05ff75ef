"""Files are whole or not there: what may be replaced, what stays as it was, and what killed writers leave."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import anytimeify
import anytimeify.staged
from anytimeify import AnytimeModel, ArtifactError, Staged, Taxonomy, cli, load
from anytimeify.io.files import new_file, new_folder, refuse_existing, regular_file, replaced_file
from anytimeify.storage.compressed import save_compressed
from anytimeify.storage.export import export_onnx, export_pt2, export_weights
from tests.backbones import Residual, images, residual_net
from tests.staged.nets import net_with_exits


@cache
def net() -> AnytimeModel:
    return residual_net()


@cache
def staged() -> Staged:
    return net_with_exits().staged()


# Everything that writes where something may be already, and everything that never does.
TAXONOMY = Taxonomy.from_parents([0, 0, 1])
REPLACING: dict[str, Callable[[Path], object]] = {
    "net.save": lambda path: net().save(path),
    "taxonomy.save": lambda path: TAXONOMY.save(path.with_suffix(".json")),
    "report.plot": lambda path: net().report().plot(path.with_suffix(".png")),
}
REFUSING: dict[str, Callable[[Path], object]] = {
    "export_pt2": lambda path: export_pt2(net().extract(0), images(), path),
    "export_onnx": lambda path: export_onnx(net().extract(0), images(), path),
    "export_weights": lambda path: export_weights(net().extract(0), images(), path),
    "save_compressed": lambda path: save_compressed(net().extract(0), path),
    "staged": lambda path: net_with_exits().staged().export(path),
}
SUFFIXES = {"taxonomy.save": ".json", "report.plot": ".png"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text(text)


# What may be replaced, and by every writer.


@pytest.mark.parametrize("writer", REPLACING)
@pytest.mark.parametrize("special", ["pipe", "device", "socket", "folder"])
def test_only_files_are_replaced(tmp_path: Path, writer: str, special: str) -> None:
    path = tmp_path / f"x{SUFFIXES.get(writer, '')}"
    if special == "pipe":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/null")
    elif special == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    else:
        path.mkdir()
    before = path.lstat().st_ino, path.lstat().st_mode
    with pytest.raises(ArtifactError, match=f"is a {special}"):
        REPLACING[writer](path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == before
    assert names(tmp_path) == [path.name]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("writer", REPLACING)
def test_links_stay_and_modes_are_kept(tmp_path: Path, writer: str) -> None:
    suffix = SUFFIXES.get(writer, "")
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / f"x{suffix}", tmp_path / f"link{suffix}"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    REPLACING[writer](link)
    assert link.is_symlink()
    assert target.read_bytes() != b"old"
    assert mode(target) == 0o600
    assert names(tmp_path / "elsewhere") == [target.name]


@pytest.mark.parametrize("writer", REFUSING)
def test_what_is_there_is_refused_by_the_others(tmp_path: Path, writer: str) -> None:
    (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="exists already"):
        REFUSING[writer](tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_new_files_have_the_mode_that_all_have(tmp_path: Path) -> None:
    with umask(0o027):
        write(tmp_path / "one", "x")
        with new_file(tmp_path / "two") as temporary:
            temporary.write_text("x")
        with new_folder(tmp_path / "three") as folder:
            (folder / "four").write_text("x")
    assert [mode(tmp_path / name) for name in ("one", "two", "three", "three/four")] == [0o640, 0o640, 0o750, 0o640]


def test_a_link_to_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write(tmp_path / "loop", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_files_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(0o444)
    with pytest.raises(ArtifactError, match="may not be written: its mode is -r--r--r--"):
        write(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "missing/x"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    for writing in (replaced_file, new_file, new_folder):
        with pytest.raises(ArtifactError), writing(tmp_path / name) as temporary:
            temporary.write_text("x")
    assert names(tmp_path) == []


def test_a_second_file_is_not_replaced_either(tmp_path: Path) -> None:
    def write_both() -> None:
        with new_file(tmp_path / "x") as temporary:
            temporary.write_text("x")
            temporary.with_name("x.data").write_text("theirs")

    (tmp_path / "x.data").write_text("mine")
    with pytest.raises(ArtifactError, match=r"x\.data' exists already"):
        write_both()
    assert (tmp_path / "x.data").read_text() == "mine"
    assert names(tmp_path) == ["x.data"]


def test_what_is_read_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "is a pipe"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ArtifactError, match=message):
            regular_file(path)
        with pytest.raises(ArtifactError, match=message):
            anytimeify.load(path)
        with pytest.raises(ArtifactError, match=message):
            Taxonomy.load(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        regular_file("a\0b")


# Failures, and writers that die.


@pytest.mark.parametrize("writing", [replaced_file, new_file, new_folder])
def test_nothing_is_left_of_what_failed(tmp_path: Path, writing: Callable[[Path], Any]) -> None:
    def fail() -> None:
        with writing(tmp_path / "x") as temporary:
            (temporary / "y" if temporary.is_dir() else temporary).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ArtifactError, match="No space left"), writing(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []
    refuse_existing(tmp_path / "x")


def test_writers_at_work_are_left_alone_and_dead_ones_are_cleaned_up_behind(tmp_path: Path) -> None:
    def hold(say: Callable[[], object]) -> None:
        with replaced_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            say()
            time.sleep(100)

    (tmp_path / "x").write_text("old")
    with victim(hold):
        write(tmp_path / "y", "other")
        assert len(names(tmp_path)) == 3  # its folder is still there
    assert (tmp_path / "x").read_text() == "old"
    assert len(names(tmp_path)) == 3
    (tmp_path / ".anytimeify-link").symlink_to(tmp_path.parent)  # somebody's trap
    write(tmp_path / "y", "again")
    assert names(tmp_path) == [".anytimeify-link", "x", "y"]


def test_many_write_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def work(index: int) -> None:
        try:
            for _ in range(20):
                write(tmp_path / "x", f"{index}" * 1000)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set((tmp_path / "x").read_text())) == 1
    assert names(tmp_path) == ["x"]


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that was forked cannot use the GPU")


# Processes that are killed: what they write again and again, and how one sees that it is whole.


@contextmanager
def victim(work: Callable[[Callable[[], object]], object]) -> Iterator[int]:
    """A process that works while the block runs, from when it says so, and is killed with SIGKILL behind it."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: this child only writes files
        child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            work(lambda: os.write(writer, b"x"))
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x", "it ended before it began"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
    assert os.WIFSIGNALED(status), "it ended before it was killed"


def backbone() -> object:
    """The source that the killed commands convert."""
    return Residual(), (images(),)


def command(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code


CONVERT = ("convert", "tests.test_files:backbone", "--scheme", "nested-channels{widths=0.5,1}", "--no-verify", "--out")
WRITERS: dict[str, Callable[[Path, int], object]] = {
    "net.save": lambda folder, _: net().save(folder / "net"),
    "convert": lambda folder, number: command(*CONVERT, str(folder / f"dir{number}")),
    "extract": lambda folder, number: command(
        "extract", str(folder / "net"), "--level", "0", "--out", str(folder / f"out{number}.pt2")
    ),
    "staged": lambda folder, number: staged().export(folder / f"stages{number}"),
}


def check_whole(folder: Path) -> None:
    """Everything that can be seen is whole: all but the temporary folders."""
    for path in folder.glob("[!.]*"):
        if path.name.startswith("stages"):
            anytimeify.staged.load(path)
        elif path.suffix == ".pt2":
            anytimeify.source(path)
        else:
            anytimeify.load(path / "net.safetensors" if path.is_dir() else path)


def killed(what: str, folder: Path, times: int) -> None:
    """Kills writers at times spread over two rounds of their work."""
    write_one = WRITERS[what]
    net().save(folder / "net")
    start = time.perf_counter()
    write_one(folder, -1)
    duration = time.perf_counter() - start
    for number in range(times):

        def work(say: Callable[[], object], first: int = 1000 * number) -> None:
            say()
            for index in itertools.count(first):
                write_one(folder, index)

        with victim(work):
            time.sleep(2 * duration * number / times)
        check_whole(folder)
    write(folder / "next", "x")  # by any writer of ours
    (folder / "next").unlink()
    assert [name for name in names(folder) if name.startswith(".")] == []
    check_whole(folder)


@no_gpu
@pytest.mark.parametrize("at", ["mkdtemp", "mkdir", "fsync", "chmod", "replace", "rmtree"])
def test_a_killed_writer_loses_nothing(tmp_path: Path, at: str) -> None:
    """Killed as it comes to the call, which leaves the old file, or behind it has put the new one there."""
    owner: Any = {"mkdtemp": tempfile, "mkdir": Path, "rmtree": shutil}.get(at, os)

    def work(say: Callable[[], object]) -> None:
        say()
        setattr(owner, at, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        net().save(tmp_path / "net")

    (tmp_path / "net").write_text("old")
    with victim(work) as child:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    if at == "rmtree":
        load(tmp_path / "net")
    else:
        assert (tmp_path / "net").read_text() == "old"
    assert len(names(tmp_path)) == (1 if at == "mkdtemp" else 2)
    write(tmp_path / "net", "new")
    assert names(tmp_path) == ["net"]


@pytest.mark.slow
@no_gpu
@pytest.mark.parametrize("what", WRITERS)
def test_twenty_killed_writers_lose_nothing(tmp_path: Path, what: str) -> None:
    killed(what, tmp_path, 20)
