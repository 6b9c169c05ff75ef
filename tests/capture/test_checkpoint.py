"""Pretrained weights of the libraries, and weights from files: loaded whole, or refused with what does not fit."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anytimeify import ArtifactError, CaptureError, source
from anytimeify.capture.checkpoint import load_checkpoint, read_checkpoint


class Tied(nn.Module):
    """Two layers with one weight, a norm, and a buffer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.second(self.first(x))))
        return result


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name in state)


WAYS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda state: state,
    "of a script": lambda state: {"epoch": 3, "state_dict": state, "args": {"lr": 0.1}},
    "another one": lambda state: {"model": state},
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "from before there were counters": lambda state: {
        name: tensor for name, tensor in state.items() if "tracked" not in name
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_state_dicts_of_torch(tmp_path: Path, way: str) -> None:
    state = values(Tied())
    torch.save(WAYS[way](state), tmp_path / "weights.pth")
    model = Tied()
    load_checkpoint(model, tmp_path / "weights.pth")
    assert same(model, state)


def test_safetensors_hold_tied_tensors_once(tmp_path: Path) -> None:
    state = values(Tied())
    del state["second.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    model = Tied()
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert same(model, state)
    assert model.second.weight is model.first.weight


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = values(Tied(classes=7))
    state["extra"] = state.pop("norm.weight")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(Tied(), tmp_path / "weights.pth")
    assert (
        "does not fit Tied. missing: norm.weight; not in the model: extra; "
        "of other shapes: head.weight [7, 4] for [5, 4], head.bias [7] for [5]." in str(caught.value)
    )
    torch.save({f"layer{number}": torch.ones(1) for number in range(9)}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match="not in the model: layer0, layer1, layer2, layer3 and 5 more"):
        load_checkpoint(Tied(), tmp_path / "other.pth")


RAN: list[str] = []


def run(what: str) -> None:
    RAN.append(what)


class Code:
    def __reduce__(self) -> Any:
        return run, ("code",)


def test_pickled_code_needs_trust(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": values(Tied()), "config": Code()}, file)
    with pytest.raises(ArtifactError, match=r"holds more than tensors.*pass --trust-pickle"):
        read_checkpoint(file)
    assert RAN == []
    assert "head.weight" in read_checkpoint(file, trust_pickle=True)
    assert RAN == ["code"]
    torch.save(Tied(), file)
    with pytest.raises(ArtifactError, match="holds more than tensors"):
        read_checkpoint(file)
    assert "head.weight" in read_checkpoint(file, trust_pickle=True)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pth", b"", "is damaged, or no checkpoint"),
        ("a.pth", b"not a checkpoint", "is damaged, or no checkpoint|holds more than tensors"),
        ("a.safetensors", b"not a checkpoint", r"a\.safetensors is damaged"),
        ("none.pth", None, "does not exist"),
    ],
)
def test_other_files(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("found", [[1, 2], {}, {"weights": [1.0]}, torch.ones(3)])
def test_other_contents(tmp_path: Path, found: object) -> None:
    torch.save(found, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="no state dict: expected names with tensors"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("head.bias", torch.ones(5, device="meta")),
        ("head.bias", torch.ones(5).to_sparse()),
        (7, torch.ones(5)),
    ],
)
def test_tensors_that_no_network_is_given(tmp_path: Path, name: Any, tensor: Tensor) -> None:
    torch.save({**values(Tied()), name: tensor}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=f"holds tensors that no network is given.*: {name}"):
        load_checkpoint(Tied(), tmp_path / "a.pth")


def test_numbers_that_would_lose_something(tmp_path: Path) -> None:
    state = values(Tied())
    state["head.bias"], state["norm.num_batches_tracked"] = torch.ones(5) * 1j, torch.tensor(0.5)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        ArtifactError, match=r"of other types: norm\.num\S+ torch\.float32 for torch\.int64, head\.bias torch"
    ):
        load_checkpoint(Tied(), tmp_path / "a.pth")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in values(Tied()).items()}
    torch.save(half, tmp_path / "half.pth")
    load_checkpoint(Tied(), tmp_path / "half.pth")


def test_the_form_before_torch_1_6(tmp_path: Path) -> None:
    state = values(Tied())
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = Tied()
    load_checkpoint(model, tmp_path / "old.pth")
    assert same(model, state)


def test_what_grows_when_it_is_read(tmp_path: Path) -> None:
    torch.save(values(Tied()), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as compressed:
        for name in plain.namelist():
            compressed.writestr(name, plain.read(name))
    with pytest.raises(ArtifactError, match="is compressed, which torch never writes"):
        read_checkpoint(tmp_path / "b.pth")
    with tarfile.open(tmp_path / "c.pth", "w") as archive:
        archive.add(tmp_path / "a.pth", "pickle")
    with pytest.raises(ArtifactError, match=r"is a tar file, as torch wrote them before 0\.1\.10"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A library that has one model, and weights for it in its cache, or cannot get them."""
    library: Any = ModuleType("timm")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        if pretrained and library.offline:
            raise OSError("We couldn't connect to the hub\nTry again")
        model = Tied()
        nn.init.constant_(model.head.bias, 7 if pretrained else 0)
        return model

    library.create_model, library.is_model, library.offline = create_model, lambda name: name == "tied", False
    library.list_models = lambda: ["tied"]
    monkeypatch.setitem(sys.modules, "timm", library)
    return library  # type: ignore[no-any-return]  # a module with attributes of a test


def test_pretrained_weights_of_timm(timm: Any, tmp_path: Path) -> None:
    assert source("timm:tied", pretrained=True).model.state_dict()["head.bias"].tolist() == [7.0] * 5
    assert source("timm:tied").model.state_dict()["head.bias"].tolist() == [0.0] * 5
    torch.save(values(Tied()), tmp_path / "weights.pth")
    found = source("timm:tied", checkpoint=tmp_path / "weights.pth")
    assert same(found.model, torch.load(tmp_path / "weights.pth"))  # type: ignore[arg-type]
    timm.offline = True
    with pytest.raises(ArtifactError) as caught:
        source("timm:tied", pretrained=True)
    message = str(caught.value)
    assert "no pretrained weights of 'timm:tied' here" in message
    assert "(OSError: We couldn't connect to the hub)" in message
    assert "\n" not in message
    with pytest.raises(CaptureError, match="timm has no model 'tyed'"):
        source("timm:tyed", pretrained=True)


def test_pretrained_weights_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision").models
    asked: list[object] = []
    state = models.squeezenet1_1(weights=None).state_dict()

    def download(url: str, *args: object, **options: object) -> dict[str, Tensor]:
        asked.append(url)
        return state  # type: ignore[no-any-return]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    model = source("torchvision:squeezenet1_1", pretrained=True).model
    assert len(asked) == 1
    assert torch.equal(model.state_dict()["classifier.1.bias"], state["classifier.1.bias"])

    def offline(*args: object, **options: object) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ArtifactError, match=r"no pretrained weights of 'torchvision:squeezenet1_1' here: .*name resolution"
    ):
        source("torchvision:squeezenet1_1", pretrained=True)


def test_folders_of_transformers_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "anytimeify.capture.sources.hf._configured", lambda path: (Tied, None, tmp_path / "config.json")
    )
    with pytest.raises(ArtifactError, match=r"holds no weights: expected model\.safetensors or .* beside config\.json"):
        source(f"hf:{tmp_path}", pretrained=True)


def test_sources_without_pretrained_weights(tmp_path: Path) -> None:
    with pytest.raises(
        CaptureError, match=r"'net\.pt2' has no pretrained weights to choose: sources that do are hf:PATH, "
    ):
        source("net.pt2", pretrained=True)
    program = torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(CaptureError, match="is an exported program, which has its weights"):
        source(tmp_path / "net.pt2", checkpoint=tmp_path / "weights.pth")
