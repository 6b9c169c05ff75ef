"""Compressed weights come back bit for bit, and take as little as their form says."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from anytimeify import ArtifactError, NestedWeights, transform
from anytimeify.cli import app
from anytimeify.storage.compressed import load_compressed, save_compressed
from tests.backbones import images, residual_net
from tests.fuzz.mutations import split_header
from tests.rounding import close

KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.complex64)


def sparse(shape: tuple[int, ...], density: float, kind: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    if not kind.is_floating_point and not kind.is_complex:
        values = values.abs() * 50 + 1
    return (values * (torch.rand(shape, generator=generator) < density)).to(kind)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_round_trip(tmp_path: Path, kind: torch.dtype, density: float) -> None:
    state = {"a.weight": sparse((17, 9, 3), density, kind), "a": sparse((300, 70), density, kind, seed=1)}
    save_compressed(state, tmp_path / "small.safetensors")
    found = load_compressed(tmp_path / "small.safetensors")
    assert list(found) == list(state)
    assert all(same(found[name], state[name]) for name in state)


shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]), st.sampled_from(KINDS), st.integers(0, 99))
def test_any_shape_round_trips(shape: tuple[int, ...], density: float, kind: torch.dtype, seed: int) -> None:
    tensor = sparse(shape, density, kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        save_compressed({"x": tensor}, Path(folder) / "x")
        assert same(load_compressed(Path(folder) / "x")["x"], tensor)


def test_what_is_not_a_plain_number_round_trips(tmp_path: Path) -> None:
    tensor = torch.zeros(64)
    tensor[:4] = torch.tensor([-0.0, float("nan"), float("-inf"), 1e-45])
    save_compressed({"x": tensor, "flag": torch.tensor([True, False] * 50), "none": torch.zeros(())}, tmp_path / "x")
    found = load_compressed(tmp_path / "x")
    assert same(found["x"], tensor)
    assert same(found["flag"], torch.tensor([True, False] * 50))
    assert found["none"].shape == ()


@pytest.mark.parametrize(
    ("density", "form", "bound"),
    [(0.001, "places", 0.001 * 8), (0.1, "bits", 0.1 * 4 + 1 / 8), (0.99, "dense", 4.0)],
)
def test_the_smallest_form_is_taken(tmp_path: Path, density: float, form: str, bound: float) -> None:
    entries = 256 * 1024
    tensor = torch.zeros(entries)
    tensor[torch.randperm(entries)[: round(density * entries)]] = 1.5
    save_compressed({"x": tensor}, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size <= entries * bound + 1000
    with safetensors.safe_open(str(tmp_path / "x"), framework="pt") as file:
        assert json.loads(file.metadata()["anytimeify.compressed"])["tensors"]["x"]["form"] == form


def test_a_level_loads_into_its_extract(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(x).relu())
            return result

    x = torch.randn(4, 64)
    net = transform(Wide(), NestedWeights((0.05, 1.0)), (x,))
    small = net.extract(0)
    save_compressed(small, tmp_path / "small.safetensors")
    plain = sum(tensor.numel() * tensor.element_size() for tensor in small.state_dict().values())
    assert (tmp_path / "small.safetensors").stat().st_size < 0.15 * plain
    other = transform(Wide(), NestedWeights((0.05, 1.0)), (x,)).extract(0)
    other.load_state_dict(load_compressed(tmp_path / "small.safetensors"))
    assert close(other(x), small(x))


def test_tensors_are_aligned_as_torch_aligns_them(tmp_path: Path) -> None:
    state = {str(size): torch.ones(size) for size in range(1, 40)}
    save_compressed(state, tmp_path / "x")
    assert not [name for name, tensor in load_compressed(tmp_path / "x").items() if tensor.data_ptr() % 64]


def test_dense_tensors_are_under_their_own_names(tmp_path: Path) -> None:
    save_compressed(nn.Linear(3, 4), tmp_path / "x")
    assert safetensors.torch.load_file(tmp_path / "x").keys() == {"weight", "bias"}


def test_the_command_line_compresses(tmp_path: Path) -> None:
    net = residual_net(NestedWeights((0.1, 1.0)))
    net.save(tmp_path / "net")
    command = ["extract", str(tmp_path / "net"), "--level", "0", "--compressed", "--out"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "small.safetensors")])
    assert result.exit_code == 0, result.output
    found = load_compressed(tmp_path / "small.safetensors")
    small = net.extract(0)
    assert all(torch.equal(found[name], tensor) for name, tensor in small.state_dict().items())
    small.load_state_dict(found)
    assert close(small(images()), net(images(), level=0))
    assert CliRunner().invoke(app, [*command, str(tmp_path / "small.pt2")]).exit_code == 2


# Files that are refused.


def rewritten(path: Path, **changes: Any) -> None:
    """The file with another description, its checksum right."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        document = json.loads(file.metadata()["anytimeify.compressed"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    document["tensors"]["x"] |= changes
    text = json.dumps(document)
    metadata = {"anytimeify.compressed": text, "anytimeify.checksum": str(zlib.crc32(text.encode()))}
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"form": "magic"},
        {"form": "bits"},
        {"form": "dense"},
        {"shape": [10]},
        {"shape": [-5, 4]},
        {"shape": "wide"},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"checksum": 1},
        {"checksum": None},
    ],
    ids=str,
)
def test_descriptions_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    tensor = torch.zeros(1000)
    tensor[5] = 1.0
    save_compressed({"x": tensor}, tmp_path / "x")
    rewritten(tmp_path / "x", **changes)
    with pytest.raises(ArtifactError, match=r"damaged|does not know|not a type"):
        load_compressed(tmp_path / "x")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load_compressed(tmp_path / "x")
    with pytest.raises(ArtifactError, match="is a folder"):
        load_compressed(tmp_path)
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ArtifactError, match="is no file of compressed weights"):
        load_compressed(tmp_path / "text")
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "plain")
    with pytest.raises(ArtifactError, match="did not write it"):
        load_compressed(tmp_path / "plain")


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    tensor = sparse((40,), 0.3)
    save_compressed({"x": tensor}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for place in range(0, len(data), 7):
        (tmp_path / "y").write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        try:
            found = load_compressed(tmp_path / "y")
        except ArtifactError:
            continue
        assert same(found["x"], tensor)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    save_compressed({"x": torch.zeros(3)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(ArtifactError, match="exists already"):
        save_compressed({"x": torch.ones(3)}, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before
    with pytest.raises(ArtifactError, match="is taken"):
        save_compressed({"x": torch.zeros(99), "x:places": torch.zeros(3), "x:bits": torch.zeros(3)}, tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_does_not_ask_for_any_amount_of_memory(tmp_path: Path) -> None:
    nothing = {"large": torch.zeros(1 << 20), "small": torch.zeros(100), "one": torch.zeros(1 << 18)}
    nothing["one"][7] = 1
    save_compressed(nothing, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 200_000  # one bit for each of many zeros
    for name, tensor in load_compressed(tmp_path / "x").items():
        assert torch.equal(tensor, nothing[name])
    header, rest = split_header((tmp_path / "x").read_bytes())
    document = json.loads(header["__metadata__"]["anytimeify.compressed"])
    document["tensors"]["small"]["shape"] = [10**6, 10**6]
    text = json.dumps(document)
    header["__metadata__"] = {"anytimeify.compressed": text, "anytimeify.checksum": str(zlib.crc32(text.encode()))}
    head = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(head).to_bytes(8, "little") + head + rest)
    with pytest.raises(ArtifactError, match="small would take 4000000000000 bytes"):
        load_compressed(tmp_path / "x")
