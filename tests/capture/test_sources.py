"""SOURCE strings: what each kind gives, and one clear error for everything that is no source."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify.capture import capture, resolve
from anytimeify.capture import sources as package
from anytimeify.capture.sources.registry import kinds
from anytimeify.errors import AnytimeError, ArgumentError, ArtifactError, CaptureError, MissingExtraError
from anytimeify.papers import recipe
from tests.capture.helpers import text


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def save(path: Path, *, training: bool, dynamic: bool = True) -> nn.Module:
    model = Small().train(training)
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    torch.export.save(torch.export.export(model, (X,), dynamic_shapes=shapes, strict=False), path)
    return model


def agree(model: nn.Module, path: Path) -> list[str]:
    from anytimeify.codegen.to_modules import to_modules

    captured = capture(resolve(str(path)).model)
    network = to_modules(captured.program)
    assert set(network.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(network.eval()(X)[0], model.eval()(X))
    assert "batch_norm(" in text(captured.program)
    assert isinstance(network.get_submodule("norm"), nn.BatchNorm2d)
    return list(captured.notes)


def test_pt2_exported_in_train_mode(tmp_path: Path) -> None:
    model = save(tmp_path / "model.pt2", training=True)
    assert agree(model, tmp_path / "model.pt2") == []


def test_pt2_exported_in_eval_mode_trains_again(tmp_path: Path) -> None:
    model = save(tmp_path / "model.pt2", training=False, dynamic=False)
    notes = " ".join(agree(model, tmp_path / "model.pt2"))
    assert "dropout" in notes
    assert "the batch was made dynamic" in notes


def test_exported_program_is_left_untouched() -> None:
    exported = torch.export.export(Small(), (X,), strict=False)
    before = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    captured = capture(exported)
    assert all(torch.equal(tensor, before[name]) for name, tensor in exported.state_dict.items())
    assert captured.program.tensors["fc.weight"] is not exported.state_dict["fc.weight"]


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_pickles_need_consent_and_run_nothing(tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "ran"), tmp_path / "model.pt")
    with pytest.raises(ArtifactError, match=r"pickle.*nothing was loaded.*--trust-pickle"):
        resolve(str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()


def test_pickled_inputs_in_a_pt2_run_nothing(tmp_path: Path) -> None:
    import io
    import zipfile

    save(tmp_path / "model.pt2", training=False)
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(tmp_path / "model.pt2") as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if "sample_inputs" in entry.filename:
                buffer = io.BytesIO()
                torch.save((Touch(tmp_path / "ran"),), buffer)
                content = buffer.getvalue()
            target.writestr(entry.filename, content)
    with pytest.raises(ArtifactError, match=r"bad\.pt2' is not read.*example inputs.*'posix\.system'"):
        resolve(str(bad))
    assert not (tmp_path / "ran").exists()


def test_trusted_pickles(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    torch.save(model, tmp_path / "model.pth")
    source = resolve(str(tmp_path / "model.pth"), trust_pickle=True)
    assert isinstance(source.model, nn.Sequential)
    assert source.name == "model"
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ArtifactError, match="state dict"):
        resolve(str(tmp_path / "state.pt"), trust_pickle=True)
    (tmp_path / "other.pt").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be unpickled"):
        resolve(str(tmp_path / "other.pt"), trust_pickle=True)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "empty", "text", "pickle"])
def test_damaged_files(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.pt2"
    save(path, training=True)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "corrupted":
        middle = whole.index(b"graph_module") + 40
        path.write_bytes(
            whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 9]) + whole[middle + 9 :]
        )
    elif damage == "pickle":
        torch.save({"a": torch.ones(2)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a model")
    with pytest.raises(ArtifactError, match=r"model\.pt2' is damaged"):
        resolve(str(path))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.pt2", "There is no file 'missing.pt2'"),
        ("missing.pt", "There is no file"),
        ("missing.onnx", "There is no file"),
        ("missing.txt", "no file.*its extension.*model.pt2"),
        ("nonsense", "names no model.*timm:NAME"),
        ("hf:missing", "There is no 'missing'.*downloads nothing"),
        (__file__, "does not have the extension of a saved model"),
    ],
)
def test_files_that_are_none(source: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        resolve(source)


def test_a_file_of_another_kind_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.tflite' does not have the extension of a saved model.*model\.pt2"):
        resolve(str(tmp_path / "model.tflite"))
    assert {"model.onnx", "model.pt2", "timm:NAME", "torchvision:NAME", "hf:PATH"} <= {kind.example for kind in kinds()}


OWN_SOURCE = """
import torch
from torch import nn
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources.source import Source, SourceKind

class Own(nn.Linear):
    pass

def load(name, trust_pickle):
    return Source(Own(int(name), 2), None, name)

def inputs(model):
    return CallInputs((torch.ones(4, model.in_features),), {}) if isinstance(model, Own) else None

KIND = SourceKind("own:SIZE", load, prefix="own", inputs=inputs)
"""


@pytest.fixture
def own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file beside those of the package, and nothing else."""
    (tmp_path / "own.py").write_text(OWN_SOURCE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    kinds.cache_clear()
    yield
    kinds.cache_clear()
    sys.modules.pop("anytimeify.capture.sources.own", None)


@pytest.mark.usefixtures("own_source")
def test_a_new_kind_of_source_is_one_file() -> None:
    source = resolve("own:3")
    assert (type(source.model).__name__, source.name) == ("Own", "3")
    assert [tuple(one.shape) for one in capture(source.model).example_inputs] == [(4, 3)]
    assert kinds()[-1].example == "package.module:factory"
    with pytest.raises(ArtifactError, match=r"A source is one of: .*own:SIZE"):
        resolve("no_such_model")
    with pytest.raises(CaptureError, match="Nothing tells the input of"):
        capture(nn.Linear(3, 2))


def test_without_its_file_a_kind_is_unknown() -> None:
    assert not any(kind.prefix == "own" for kind in kinds())
    with pytest.raises(CaptureError, match="Cannot import 'own'"):
        resolve("own:size")


FACTORIES = """
import torch
from torch import nn
def plain(): return nn.Linear(3, 2)
def with_inputs(): return nn.Linear(3, 2), torch.ones(4, 3)
class Space: model = nn.Linear(3, 2)
def wrong(): return 3
def broken(): raise KeyError("lost")
def leaving(): raise SystemExit(7)
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_models.py").write_text(FACTORIES)
    (tmp_path / "their_typos.py").write_text("def (:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("their_models", None)


@pytest.mark.usefixtures("factories")
def test_factories() -> None:
    assert isinstance(resolve("their_models:plain").model, nn.Linear)
    assert isinstance(resolve("their_models:Space.model").model, nn.Linear)
    source = resolve("their_models:with_inputs")
    assert capture(source.model, source.example_inputs).batch


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_models:lost", "has no 'lost'"),
        ("no_such_module:plain", "Cannot import 'no_such_module'"),
        ("their_models:wrong", "returned a int"),
        ("their_models:broken", "raised KeyError"),
        ("their_models:leaving", "raised SystemExit: 7"),
        ("their_typos:plain", "Importing 'their_typos' raised SyntaxError"),
        ("their_models:number", "neither a model nor a function"),
    ],
)
def test_factories_that_fail(name: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        resolve(name)


@pytest.mark.parametrize("kind", ["timm", "torchvision", "hf"])
def test_missing_extras(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, {"hf": "transformers"}.get(kind, kind), None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anytimeify\[zoo\]'"):
        resolve(f"{kind}:{tmp_path if kind == 'hf' else 'resnet18'}")


@pytest.mark.zoo
@pytest.mark.parametrize("source", ["timm:resnet81", "torchvision:resnet81"])
def test_unknown_names_are_corrected(source: str) -> None:
    with pytest.raises(CaptureError, match=r"Did you mean .*resnet18"):
        resolve(source)


@pytest.mark.zoo
def test_networks_of_the_papers() -> None:
    found, printed = resolve("paper:dhm/resnet-32"), recipe("dhm/resnet-32")
    assert type(found.model) is type(printed.backbone)
    assert [one.shape for one in found.example_inputs] == [one.shape for one in printed.example_inputs]
    with pytest.raises(CaptureError, match="is two networks"):
        resolve("paper:dcm/resnet-110")


def test_hf_folder(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "tiny")
    source = resolve(f"hf:{tmp_path / 'tiny'}")
    captured = capture(source.model)
    assert torch.equal(captured.program.tensors["classifier.weight"], model.get_parameter("classifier.weight"))
    config.architectures = None
    config.save_pretrained(tmp_path / "bare")
    with pytest.raises(CaptureError, match="names no architecture"):
        resolve(f"hf:{tmp_path / 'bare'}")
    path = tmp_path / "bare" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["ViTForImageClassification"]}))
    assert isinstance(resolve(f"hf:{path}").model, transformers.ViTForImageClassification)
    path.write_text("{")
    with pytest.raises(AnytimeError):
        resolve(f"hf:{path}")


@pytest.mark.zoo
def test_torchvision_inputs_come_from_the_weights() -> None:
    source = resolve("torchvision:inception_v3")
    assert source.example_inputs[0].shape == (2, 3, 299, 299)
    assert resolve("torchvision:regnet_y_16gf").example_inputs[0].shape[-1] in (224, 384)


@pytest.mark.zoo
def test_detectors_of_torchvision_download_nothing() -> None:
    assert isinstance(resolve("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn").model, nn.Module)


class WithoutGradient(nn.Module):
    """Switches the grad mode on its way."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.sum()
        return x + y


def test_a_program_that_does_not_run_is_refused(tmp_path: Path) -> None:
    """A node reads another than it was exported with, so that shapes no longer fit."""
    exported = torch.export.export(WithoutGradient(), (X,), strict=False)
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if node.target is torch.ops.aten.sum.default:
                node.target, node.args = torch.ops.aten.reshape.default, (*node.args, [7, 7])
    with pytest.raises(CaptureError, match=r"does not run, or its parts do not fit together.*Export the model anew"):
        capture(exported)
    assert torch.is_grad_enabled()


def test_a_source_in_python(tmp_path: Path) -> None:
    import anytimeify

    model = save(tmp_path / "model.pt2", training=False)
    found = anytimeify.source(tmp_path / "model.pt2")
    assert (found.name, found.example_inputs) == ("model", None)
    with pytest.warns(anytimeify.AnytimeWarning, match="exported in eval mode"):
        net = anytimeify.transform(found, anytimeify.NestedChannels((0.5, 1.0))).eval()
    torch.testing.assert_close(net(X, level=-1), model.eval()(X))
    for spec, kind, message in (
        ("nothing", ArtifactError, "names no model"),
        ("model.onnx", ArtifactError, "no file"),
        ("a\0b.pt2", ArtifactError, "no file"),
        (str(tmp_path), ArtifactError, "extension"),
        (b"timm:resnet18", ArgumentError, "expected a text"),
    ):
        with pytest.raises(kind, match=message):
            anytimeify.source(spec)  # type: ignore[arg-type]  # refused input


def test_a_source_tells_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import anytimeify

    (tmp_path / "with_inputs.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def made():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 4),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = anytimeify.source("with_inputs:made")
    net = anytimeify.transform(found, "nested-channels{widths=0.5,1}")
    assert net(torch.randn(3, 4), level=0).shape == (3, 3)
