"""Networks through both exporters of torch, and files of other people's packages, as sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anytimeify import transform
from benchmarks.onnx_sources.exports import EXPORTS, Export, export
from benchmarks.onnx_sources.networks import FILES, NETWORKS, Wheel, compare, download, network
from benchmarks.onnx_sources.rows import SCHEMES, network_rows


@pytest.mark.zoo
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks(name: str, tmp_path: Path) -> None:
    rows = list(network_rows(name, EXPORTS, tmp_path))
    assert [row.file for row in rows if row.not_exported] == ["dynamo 11"]
    assert not [row for row in rows if not row.holds]


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["torchvision resnet18", "torchvision Swin of two stages", "timm vit_tiny_patch16_224"]
)
def test_a_batch_of_one_that_is_written_into_a_file(name: str, tmp_path: Path) -> None:
    model, inputs = network(name)
    first = tuple(one[:1] for one in inputs)
    export(model, first, Export(False, 17), tmp_path / "model.onnx", dynamic=False)
    source, gap = compare(tmp_path / "model.onnx")
    assert gap <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(source.model.eval()(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]  # a module
    assert transform(source, SCHEMES["channels"]).captured.batch is not None


@pytest.mark.libraries
@pytest.mark.parametrize("wheel", FILES, ids=lambda wheel: wheel.member)
def test_files_of_packages(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "wheels"
    folder.mkdir(exist_ok=True)
    source, gap = compare(download(wheel, folder), wheel.inputs)
    assert gap <= 3e-5
    with pytest.warns() if "silero" in wheel.package else torch.no_grad():
        levels = transform(source, "nested-channels{widths=0.5,1}").levels
    assert levels[0].cost.macs < 0.6 * levels[1].cost.macs
