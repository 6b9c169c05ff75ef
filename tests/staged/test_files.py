"""Folders of stages: they compute the same in torch and in onnxruntime, stop as early, and are whole or not there."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify import AnytimeWarning, ArgumentError, ArtifactError, Confidence, Staged, VerificationError
from anytimeify.early_exit.document import seal
from anytimeify.early_exit.files import FORMATS, OnnxStage
from anytimeify.io import checksums
from anytimeify.staged import load
from tests.staged.nets import TokensFirst, Windows, calls, chosen, close, forked, images, net_with_exits

POLICY = Confidence(threshold=(0.25, 0.35), temperature=(1.5, 1.0, 2.0))


@pytest.fixture(scope="module", params=["pool", "ensemble"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Staged, Path]:
    """A network and the folder that it was written to."""
    staged, folder = net_with_exits(request.param).staged(), tmp_path_factory.mktemp("stages") / "out"
    staged.policy = POLICY
    staged.export(folder, ("pt2", "onnx"))
    return staged, folder


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("exits", [(0,), (2,), (1, 0, 2, 0, 1), (0, 0), (2, 2, 0)])
def test_results_are_those_of_the_network(pair: tuple[Staged, Path], format: Any, exits: tuple[int, ...]) -> None:
    (x,), (staged, folder) = images(len(exits)), pair
    loaded = load(folder, format, threads=1)
    found, expected = loaded(x, policy=chosen(*exits)), staged(x, policy=chosen(*exits))
    assert found.exits.tolist() == list(exits)
    assert close(found.prediction, expected.prediction)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_later_stages_are_not_run(pair: tuple[Staged, Path], format: Any) -> None:
    (x,), (_, folder) = images(4), pair
    loaded = load(folder, format, threads=1)
    seen = calls(loaded.stages)
    loaded(x, policy=lambda predictions, exit: True)
    assert seen == [[4], [], []]
    loaded(x, policy=chosen(2, 0, 1, 1))
    assert seen == [[4, 4], [3], [1]]


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_what_goes_with_the_stages(pair: tuple[Staged, Path], format: Any) -> None:
    (x,), (staged, folder) = images(3), pair
    loaded = load(folder, format, threads=1)
    assert loaded.policy == POLICY
    assert loaded.levels == staged.levels
    assert loaded.macs == staged.macs
    assert loaded(x).exits.tolist() == staged(x).exits.tolist()
    assert [level for level, _ in loaded.stream(x)] == list(staged.levels)
    assert not loaded.train().training
    assert close(copy.deepcopy(loaded)(x).prediction, staged(x).prediction)
    assert loaded(x=x).exits.tolist() == staged(x).exits.tolist()


def test_the_folder_says_all_that_a_runner_needs(pair: tuple[Staged, Path]) -> None:
    staged, folder = pair
    names = {"stages.json", *(f"stage-{index}.{kind}" for index in range(3) for kind in ("pt2", "onnx"))}
    assert {path.name for path in folder.iterdir()} == names
    document = json.loads((folder / "stages.json").read_text())
    assert document["separable"] is True
    for index, stage in enumerate(document["stages"]):
        assert stage["reads"] == list(staged.chain.stages[index].reads)
        assert stage["files"]["onnx"] == f"stage-{index}.onnx"
        session = OnnxStage(folder / f"stage-{index}.onnx", 1).session
        assert [entry.name for entry in session.get_inputs()] == stage["reads"]
        assert [entry.name for entry in session.get_outputs()] == stage["gives"]
        for name in stage["reads"]:
            assert document["values"][name]["samples"] == 0


@pytest.mark.parametrize(("backbone", "at"), [(TokensFirst, "stem"), (Windows, "first")])
def test_awkward_features(tmp_path: Path, backbone: type[nn.Module], at: str) -> None:
    (x,), staged = images(3), forked(backbone(), at).staged()
    staged.export(tmp_path / "out", ("pt2", "onnx"))
    for format in ("pt2", "onnx"):
        found, expected = load(tmp_path / "out", format)(x), staged(x)
        assert close(found.prediction, expected.prediction)


# Whole or not there.


def test_what_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        net_with_exits().staged().export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "formats", "message"),
    [
        ({}, (), r"formats=\(\): expected some of pt2, onnx"),
        ({}, "safetensors", "formats='safetensors': expected some of pt2, onnx"),
        ({"policy": lambda predictions, exit: True}, ("pt2",), "cannot be written to a file"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, change: dict[str, Any], formats: Any, message: str) -> None:
    staged = net_with_exits().staged()
    for name, value in change.items():
        setattr(staged, name, value)
    with pytest.raises(ArgumentError, match=message):
        staged.export(tmp_path / "out", formats)
    assert list(tmp_path.iterdir()) == []


def test_files_that_compute_something_else_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FORMATS["pt2"]

    def wrong(file: Path, **options: bool) -> nn.Module:
        module = read(file)
        module.register_forward_hook(lambda module, values, results: (*results[:-1], results[-1] + 0.01))
        return module

    monkeypatch.setattr("anytimeify.early_exit.write.FORMATS", {"pt2": wrong})
    with pytest.raises(VerificationError, match=r"'stage-0\.pt2' was not written"):
        net_with_exits().staged().export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Folders that cannot be read.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "out"
    net_with_exits().staged().export(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "out"))


def test_a_loaded_network_is_not_written_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="copy its folder"):
        load(folder).export(tmp_path / "again")


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no file stages\.json"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="holds stages as pt2, not as 'onnx'"):
        load(folder, "onnx")
    (folder / "stage-1.pt2").unlink()
    with pytest.raises(ArtifactError, match=r"stage-1\.pt2' is missing: the folder is not whole"):
        load(folder)


def test_a_damaged_stage(folder: Path) -> None:
    data = (folder / "stage-1.pt2").read_bytes()
    (folder / "stage-1.pt2").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"stage-1\.pt2' is damaged"):
        load(folder)


def test_a_damaged_onnx_stage(tmp_path: Path) -> None:
    (tmp_path / "stage.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"stage\.onnx' is damaged"):
        OnnxStage(tmp_path / "stage.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.clear(), "does not describe stages"),
        (lambda document: document.update(format=99), "has format 99, this version of anytimeify reads format 2 and 1"),
        (lambda document: document.update(formats=["exe"]), "the formats .* are not known"),
        (lambda document: document.update(stages=[]), "there are no stages"),
        (lambda document: document.pop("values"), "is damaged: KeyError"),
        (lambda document: document["values"].popitem(), "has no type"),
        (lambda document: document["stages"][1].update(reads=["nothing"]), "reads 'nothing', which nothing gives"),
        (lambda document: document.update(policy={"kind": "os.system"}), "is damaged: KeyError"),
        (lambda document: document.update(policy={"kind": "patience", "exits": 0}), "exits=0"),
    ],
)
def test_a_damaged_manifest(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = json.loads((folder / "stages.json").read_text())
    change(document)
    (folder / "stages.json").write_text(seal(document))
    with pytest.raises(ArtifactError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: (
            document["policy"].update(threshold=0.99) if document["policy"] else document.update(batch=None)
        ),
        lambda document: document["stages"][0]["level"].update(macs=1),
        lambda document: document["stages"].pop(),
        lambda document: document["checksums"].popitem(),
        lambda document: document.pop("checksum"),
    ],
)
def test_no_edit_goes_unnoticed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "stages.json").read_text())
    change(document)
    (folder / "stages.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"stages\.json is damaged: it does not have the checksum"):
        load(folder)


def test_a_manifest_may_be_formatted_anew(folder: Path) -> None:
    document = json.loads((folder / "stages.json").read_text())
    (folder / "stages.json").write_text(json.dumps(dict(reversed(document.items()))))
    load(folder)


def test_stages_may_not_be_exchanged(folder: Path) -> None:
    one, other = folder / "stage-0.pt2", folder / "stage-1.pt2"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"stage-0\.pt2' is damaged: it does not have the checksum"):
        load(folder)


def test_what_belongs_to_a_stage_is_checked_too(folder: Path) -> None:
    document = json.loads((folder / "stages.json").read_text())
    document["checksums"]["stage-0.pt2.data"] = checksums.of_text("weights")
    (folder / "stages.json").write_text(seal(document))
    with pytest.raises(ArtifactError, match=r"stage-0\.pt2\.data' is missing"):
        load(folder)
    (folder / "stage-0.pt2.data").write_text("other weights")
    with pytest.raises(ArtifactError, match=r"stage-0\.pt2\.data' is damaged"):
        load(folder)
    (folder / "stage-0.pt2.data").write_text("weights")
    load(folder)


def test_folders_of_earlier_versions_are_read_with_a_warning(folder: Path) -> None:
    document = json.loads((folder / "stages.json").read_text())
    del document["checksum"], document["checksums"]
    (folder / "stages.json").write_text(json.dumps({**document, "format": 1}))
    with pytest.warns(AnytimeWarning, match="without checksums") as warned:
        load(folder)
    assert warned[0].filename == __file__


def test_a_manifest_that_is_no_text(folder: Path) -> None:
    (folder / "stages.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(folder)


def test_exits_are_told_apart_by_their_values(pair: tuple[Staged, Path]) -> None:
    (x,), (staged, _) = images(3), pair
    predictions = [prediction for _, prediction in staged.stream(x)]
    assert not torch.allclose(predictions[0], predictions[1], atol=1e-3)
