"""What a saved file holds and in which order, what it never holds, and files of earlier versions."""

from __future__ import annotations

import copy
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    AnytimeWarning,
    ArtifactError,
    HierarchicalEnsemble,
    NestedChannels,
    load,
    transform,
)
from anytimeify.storage.models import seal
from tests.backbones import Clashing, images, residual_net
from tests.passes.every_scheme import EVERY, LABELS, TAXONOMY, net_of
from tests.passes.every_scheme import images as pictures


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["anytimeify"]), safetensors.torch.load(data)


def orders(net: nn.Module) -> list[list[str]]:
    named = net.named_parameters(), net.named_buffers(), net.named_modules()
    return [*([name for name, _ in one] for one in named), list(net.state_dict())]


# The order of parameters.


@pytest.mark.parametrize("with_options", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_everything_comes_in_the_order_that_it_had(tmp_path: Path, name: str, with_options: bool) -> None:
    net = net_of(name, TAXONOMY, "learned") if with_options else net_of(name, None)
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert orders(loaded) == orders(net)
    assert repr(loaded.loss) == repr(net.loss)
    loaded.save(tmp_path / "again")
    assert opened(tmp_path / "again")[0] == opened(tmp_path / "net")[0]


def test_names_that_had_to_be_changed_keep_their_order(tmp_path: Path) -> None:
    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.meta, self.code, self.graph = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.graph(self.code(self.meta(x)))
            return result

    for backbone in (Graphs(), Clashing()):
        net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(4, 4))
        net.save(tmp_path / "net")
        assert orders(load(tmp_path / "net")) == orders(net)


def steps(net: AnytimeModel, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    for _ in range(3):
        optimizer.zero_grad()
        loss: Tensor = net.loss(net(x), y)
        loss.backward()
        optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("name", ["ensemble", "branches", "channels", "two networks"])
def test_training_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    net, (x, y) = copy.deepcopy(net_of(name, None)), (pictures(), LABELS)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    steps(net, optimizer, x, y)
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    again = torch.optim.AdamW(loaded.parameters(), 1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(steps(loaded, again, x, y), steps(net, optimizer, x, y), rtol=1e-5, atol=1e-6)


# What a file holds.


@pytest.mark.parametrize("scheme", [NestedChannels((0.5, 1.0)), HierarchicalEnsemble(1)])
def test_a_file_holds_no_more_of_its_inputs_than_their_shapes(tmp_path: Path, scheme: Any) -> None:
    data = torch.full((5000, 16), 0.123456789)  # a data set, of which the example is two samples
    whole = torch.randn(1000, 16)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].weight = nn.Parameter(whole[10:26])  # a view into more than is its own
    model.register_buffer("window", whole.view(-1)[:4])
    net = transform(model, scheme, data[7:9])
    net.save(tmp_path / "net")
    written = (tmp_path / "net").read_bytes()
    assert data[0, :2].numpy().tobytes() not in written
    assert whole[200].numpy().tobytes() not in written
    assert len(written) < 60_000


def test_tensors_get_memory_of_their_own(tmp_path: Path) -> None:
    residual_net().save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    before = [tensor.clone() for tensor in loaded.tensors().values()]
    size = (tmp_path / "net").stat().st_size
    with (tmp_path / "net").open("r+b") as file:  # under the feet of whoever looks into the file
        file.write(bytes(size))
    assert all(map(torch.equal, loaded.tensors().values(), before))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.tensors().values() if tensor.numel())


@pytest.mark.parametrize("shape", [[2, 3, 10**6, 10**6], [2, 3, 30000, 30000]])
def test_examples_of_any_size_take_no_memory(tmp_path: Path, shape: list[int]) -> None:
    residual_net().save(tmp_path / "net")
    document, tensors = opened(tmp_path / "net")
    document["examples"] = [[shape, "float32", 0]]
    (tmp_path / "net").write_bytes(seal(document, tensors))
    (example,) = load(tmp_path / "net").captured.example_inputs
    assert list(example.shape) == shape
    assert example.untyped_storage().nbytes() == 4


# What was changed without its checksum.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32"', b'"I32"'),  # other numbers of the same bytes
        (b"widths=0.25", b"widths=0.75"),
        (b"JointLoss", b"JointLess"),
        (b"aten.relu.default", b"aten.tanh.default"),
    ],
)
def test_no_edit_goes_unnoticed(tmp_path: Path, old: bytes, new: bytes) -> None:
    residual_net().save(tmp_path / "net")
    data = (tmp_path / "net").read_bytes()
    assert old in data
    (tmp_path / "net").write_bytes(data.replace(old, new))
    with pytest.raises(ArtifactError, match="does not have the checksum that was written"):
        load(tmp_path / "net")


def test_tensors_may_not_be_exchanged_added_or_taken_away(tmp_path: Path) -> None:
    residual_net().save(tmp_path / "net")
    data = (tmp_path / "net").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    one, other = header["bn1.weight"], header["bn1.running_mean"]
    for change in (
        {"bn1.weight": other, "bn1.running_mean": one},
        {"one.more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"bn1.weight": {**one, "shape": [1, *one["shape"]]}},
        {"bn1.weight": {**one, "dtype": "I32"}},
    ):
        text = json.dumps({**header, **change}).encode()
        rest = data[8 + int.from_bytes(data[:8], "little") :]
        (tmp_path / "net").write_bytes(len(text).to_bytes(8, "little") + text + rest)
        with pytest.raises(ArtifactError, match="damaged"):
            load(tmp_path / "net")


# Files of earlier versions.


def as_format_1(path: Path) -> None:
    document, tensors = opened(path)
    document = {name: value for name, value in document.items() if name != "loss"}
    crc = {name: zlib.crc32(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    document |= {"format": 1, "scheme": document["scheme"]["spec"], "tensors": sorted(document["tensors"])}
    text = json.dumps({**document, "checksums": crc})
    metadata = {"anytimeify": text, "anytimeify.checksum": str(zlib.crc32(text.encode()))}
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def test_files_of_earlier_versions_are_read_with_a_warning(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    net.save(tmp_path / "net")
    as_format_1(tmp_path / "net")
    with pytest.warns(AnytimeWarning, match="written by an earlier version"):
        loaded = load(tmp_path / "net")
    for found, expected in zip(loaded(x).levels, net(x).levels, strict=True):
        torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AnytimeWarning):
            load(tmp_path / "net")
    data = (tmp_path / "net").read_bytes()
    (tmp_path / "net").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(AnytimeWarning), pytest.raises(ArtifactError, match="does not have the checksum"):
        load(tmp_path / "net")
