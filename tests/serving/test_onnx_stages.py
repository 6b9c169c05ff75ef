"""Stages served without torch: as the levels of the model, each going on from the one before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from anytimeify import AnytimeModel, ArgumentError, ArtifactError, staged
from anytimeify.early_exit.document import seal
from anytimeify.runtime import Adaptive, AnytimeRunner
from anytimeify.serving import onnx_stages
from tests.backbones import images
from tests.deploy.nets import trained
from tests.source_files import ROOT

SCHEMES = (
    "auxiliary-branches{branches=1}",
    "hierarchical-ensemble{depth=1}",
    "nested-channels{widths=0.5,1 connectivity=triangular}",
)
APART = "nested-channels{widths=0.5,1}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[AnytimeModel, Path]]:
    @cache
    def write(scheme: str) -> tuple[AnytimeModel, Path]:
        net, path = trained(scheme), tmp_path_factory.mktemp("net") / "stages"
        net.export(path, "staged")
        return net, path

    return write


@pytest.fixture(params=(*SCHEMES, APART))
def case(
    request: pytest.FixtureRequest, written: Callable[[str], tuple[AnytimeModel, Path]]
) -> tuple[AnytimeModel, Path]:
    return written(request.param)


@pytest.fixture
def exits(written: Callable[[str], tuple[AnytimeModel, Path]]) -> tuple[AnytimeModel, Path]:
    return written(SCHEMES[0])


def calls(patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[object]:
    """A list to which every call of a function is added."""
    function = getattr(module, name)
    found: list[object] = []

    def call(*args: Any) -> Any:
        found.append(args)
        return function(*args)

    patch.setattr(module, name, call)
    return found


def close(value: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(value), expected.detach(), rtol=1e-4, atol=1e-4)


def test_levels_are_those_of_the_model(case: tuple[AnytimeModel, Path]) -> None:
    net, path = case
    runner = AnytimeRunner(path, threads=1, warm_up=False)
    assert [(one.name, one.number, one.macs) for one in runner.levels] == [
        (one.name, one.number, one.cost.macs) for one in net.levels
    ]
    for batch in (1, 3):
        x = images(batch)
        streamed = list(runner.stream(x.numpy()))
        assert [one.level.index for one in streamed] == [0, 1]
        for level, prediction in zip(net.levels, streamed, strict=True):
            close(prediction.value, net(x, level=level))
            close(runner.predict(x, level=level.name).value, net(x, level=level))


def test_a_stream_computes_what_is_new_and_a_level_what_it_needs(
    case: tuple[AnytimeModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, path = case
    runner = AnytimeRunner(path, threads=1, warm_up=False)
    backend: Any = runner.backend
    apart = str(net.scheme) == APART
    assert backend.needed == ((0,), (1,) if apart else (0, 1))
    document = json.loads((path / "stages.json").read_text())
    assert document["scheme"] == str(net.scheme)
    alone = sum(level.cost.macs for level in net.levels)
    assert (sum(stage["macs"] for stage in document["stages"]) == alone) == apart
    runs = calls(monkeypatch, onnx_stages, "compute")
    steps = runner.stream(images(1))
    next(steps)
    del steps
    assert len(runs) == 1  # interrupted
    assert len(list(runner.stream(images(1), deadline_ms=1e9))) == 2
    assert len(runs) == 3


def test_deadlines_and_requests(exits: tuple[AnytimeModel, Path]) -> None:
    net, path = exits
    runner = AnytimeRunner(path, threads=1)
    assert runner.predict(images(1), deadline_ms=0).level.index == 0
    assert runner.predict(images(1), deadline_ms=1e9).level.index == 1
    assert [one.level.index for one in runner.stream(images(1), deadline_ms=0)] == [0]
    with Adaptive(runner, slo_ms=1e6) as server:
        close(server.predict(images(1)[0].numpy()).value, net(images(1), level=-1)[0])


def test_the_reader_of_the_page(
    case: tuple[AnytimeModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net, path = case
    page = (ROOT / "docs" / "staged_format.md").read_text()
    write, reader = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(reader.splitlines()) <= 32
    monkeypatch.chdir(path.parent)
    x = images(2)
    shown: dict[str, Any] = {"x": x.numpy(), "net": net}
    exec(reader, shown)
    for (name, value), level in zip(shown["Stages"](path).stream(x.numpy()), net.levels, strict=True):
        assert name == level.name
        close(value, net(x, level=level))
    fields = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    document = json.loads((path / "stages.json").read_text())
    assert fields == {*document, *document["stages"][0], *next(iter(document["values"].values()))}
    monkeypatch.chdir(tmp_path)
    exec(write, shown)
    assert (tmp_path / "stages" / "stages.json").is_file()


def test_torch_runs_the_same_folder(exits: tuple[AnytimeModel, Path]) -> None:
    net, path = exits
    x = images(2)
    for (level, value), own in zip(staged.load(path, threads=1).stream(x), net.levels, strict=True):
        assert (level.name, level.number) == (own.name, own.number)
        close(value, net(x, level=own))
    with pytest.raises(ArgumentError, match="is run by backend='onnxruntime', not by torch"):
        AnytimeRunner(path, backend="torch")


def test_some_levels_and_again(exits: tuple[AnytimeModel, Path], tmp_path: Path) -> None:
    net, _ = exits
    net.export(tmp_path / "one", "staged", levels=[1])
    assert [level.name for level in AnytimeRunner(tmp_path / "one", warm_up=False).levels] == [net.levels[1].name]
    with pytest.raises(ArtifactError, match="exists already"):
        net.export(tmp_path / "one", "staged")
    net.export(tmp_path / "one", "staged", force=True)
    assert len(AnytimeRunner(tmp_path / "one", warm_up=False).levels) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ArtifactError, match=r"holds no stages\.json: only a folder of stages is replaced"):
        net.export(tmp_path / "mine", "staged", force=True)
    with pytest.raises(ArgumentError, match="expected one of onnx, pt2, executorch, staged"):
        net.export(tmp_path / "other", "docx")


def changed(path: Path, target: Path, change: Callable[[Any], object]) -> Path:
    target.mkdir()
    for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    document = json.loads((path / "stages.json").read_text())
    change(document)
    (target / "stages.json").write_text(seal(document))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all: all["stages"][1]["reads"].append("nothing"), "a stage reads 'nothing', which nothing gives"),
        (lambda all: all["stages"][1]["reads"].append("x"), "stage-1.onnx reads other values than"),
        (lambda all: all["stages"][1]["gives"].insert(0, "more"), "stage-1.onnx gives other values than more"),
        (lambda all: all["stages"][1]["gives"].clear(), "it gives nothing"),
        (lambda all: all.update(batch_range=[3, 2]), "no batch has 3 to 2 samples"),
        (lambda all: all["stages"].clear(), "there are no stages"),
        (lambda all: all["stages"][0]["files"].update(onnx="../stage-0.onnx"), "is no file of the folder"),
        (lambda all: all.update(formats=["pt2"]), "holds no ONNX stages"),
        (lambda all: all.update(format=3), "has format 3"),
        (lambda all: all["checksums"].update({"stage-0.onnx": "0"}), "does not have the checksum"),
        (lambda all: all["values"].clear(), "is damaged"),
    ],
)
def test_damaged_folders_are_refused(
    exits: tuple[AnytimeModel, Path], tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        AnytimeRunner(changed(exits[1], tmp_path / "damaged", change))


WITHOUT_TORCH = """
import os, sys
sys.modules["torch"] = None
import numpy as np
from anytimeify.runtime import AnytimeRunner
runner = AnytimeRunner({path!r}, threads=1)
x = np.zeros({shape}, np.float32)
assert runner.predict(x).level.index == 1
assert len(list(runner.stream(x))) == 2
expected = runner.predict(x).value
if sys.platform != "win32":
    child = os.fork()
    if child == 0:
        os._exit(0 if np.allclose(runner.predict(x).value, expected, rtol=1e-4, atol=1e-5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_torch_is_not_needed(exits: tuple[AnytimeModel, Path]) -> None:
    code = WITHOUT_TORCH.format(path=str(exits[1]), shape=tuple(images(1).shape))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
