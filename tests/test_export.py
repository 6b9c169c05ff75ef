"""Files of extracted levels: they compute the same, at every batch size, and are whole or not there."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from anytimeify import ArtifactError, MissingExtraError, VerificationError, transform
from anytimeify.io.files import new_file, new_folder
from anytimeify.storage import export
from anytimeify.storage.export import FORMATS, export_onnx, export_pt2, export_weights
from tests.backbones import Keywords, images, residual_net


def small() -> fx.GraphModule:
    return residual_net(verify=False).extract(0)


def run_onnx(path: Path, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path))
    names = [entry.name for entry in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])


def test_pt2(tmp_path: Path) -> None:
    module = small()
    export_pt2(module, images(), tmp_path / "small.pt2")
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    for batch in (1, 4, 5):
        torch.testing.assert_close(loaded(images(batch)), module(images(batch)))
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


def test_onnx(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = small()
    export_onnx(module, images(), tmp_path / "small.onnx")
    for batch in (1, 4, 5):
        torch.testing.assert_close(run_onnx(tmp_path / "small.onnx", images(batch)), module(images(batch)))
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert capfd.readouterr() == ("", "")


def test_onnx_says_nothing_of_where_nodes_are_from(tmp_path: Path) -> None:
    export_onnx(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),), tmp_path / "model.onnx")
    written = (tmp_path / "model.onnx").read_bytes()
    assert all(word not in written for word in (b"pkg.torch", b"stack_trace", b"torch.nn.modules", b"namespace"))


def test_a_single_sample_is_example_enough(tmp_path: Path) -> None:
    export_onnx(small(), images(1), tmp_path / "small.onnx")
    assert run_onnx(tmp_path / "small.onnx", images(3)).shape == (3, 5)


def test_static_batch(tmp_path: Path) -> None:
    export_onnx(small(), images(1), tmp_path / "small.onnx", dynamic_batch=False)
    assert onnxruntime.InferenceSession(str(tmp_path / "small.onnx")).get_inputs()[0].shape == [1, 3, 6, 6]


def test_weights(tmp_path: Path) -> None:
    module = small()
    export_weights(module, images(), tmp_path / "small.safetensors")
    found = safetensors.torch.load_file(tmp_path / "small.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }
    assert found["conv.weight"].shape == (2, 2, 3, 3)


def test_keyword_inputs(tmp_path: Path) -> None:
    x, scale = torch.randn(3, 4), torch.randn(3, 1)
    net = transform(Keywords(), "nested-channels{widths=0.5,1}", {"x": x, "scale": scale}, verify=False)
    module = net.extract(0)
    export_onnx(module, {"x": x, "scale": scale}, tmp_path / "small.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "small.onnx", x, scale), module(x, scale=scale))


@pytest.mark.parametrize("format", FORMATS)
def test_what_exists_is_kept(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"small.{format}"
    path.write_text("precious")
    with pytest.raises(ArtifactError, match=r"exists already\. Nothing was written"):
        FORMATS[format](small(), images(), path, True)
    assert path.read_text() == "precious"
    with pytest.raises(ArtifactError, match="There is no folder"):
        FORMATS[format](small(), images(), tmp_path / "no" / path.name, True)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    name = "_run_onnx" if format == "onnx" else "_run_program"
    original: Any = getattr(export, name)

    def wrong(source: object) -> Any:
        run = original(source)
        return lambda inputs: pytree.tree_map(lambda result: result + 1e-2, run(inputs))

    monkeypatch.setattr(export, name, wrong)
    with pytest.raises(VerificationError, match=rf"small\.{format}' was not written: at inputs of \[\[4, 3, 6, 6\]\]"):
        FORMATS[format](small(), images(), tmp_path / f"small.{format}", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*anytimeify\[onnx\]"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_new_folders_are_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("caf\u00e9", encoding="ascii")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
    assert (tmp_path / "out").stat().st_mode & 0o055  # as other folders, not private like temporary ones


def test_files_that_belong_together_move_together(tmp_path: Path) -> None:
    with new_file(tmp_path / "model.onnx") as path:
        path.write_text("model")
        path.with_name("model.onnx.data").write_text("data")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ArtifactError, match="cannot be written: No space left on device"), new_file(tmp_path / "x"):
        pass
