"""No file holds more of a tensor than its own elements, nor paths of the machine that it was written on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.runtime.model import AnytimeModel
from anytimeify.storage.compressed import save_compressed
from anytimeify.storage.export import export_onnx, export_pt2, export_weights

TIMES = 1_000  # how much larger the storages are that weights and inputs are views of


class Network(nn.Module):
    """Weights, a buffer and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.shift: Tensor
        self.register_buffer("shift", torch.ones(5))
        self.scale = torch.full((5,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.conv(x).relu().mean((2, 3))) + self.shift) * self.scale  # type: ignore[no-any-return]


def view(tensor: Tensor) -> Tensor:
    """The same elements, somewhere in a storage of a thousand such tensors, along their first dimension."""
    many = torch.cat([tensor.detach(), torch.zeros(len(tensor) * (TIMES - 1), *tensor.shape[1:])])
    return many[: len(tensor)]


@functools.cache
def network(*, views: bool) -> tuple[AnytimeModel, Tensor]:
    torch.manual_seed(0)
    backbone, x = Network(), torch.randn(2, 3, 8, 8)
    if views:
        for module in (backbone.conv, backbone.head):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(view(parameter)))
        backbone.shift, backbone.scale, x = view(backbone.shift), view(backbone.scale), view(x)
    return transform(backbone, NestedChannels(widths=(0.5, 1.0)), example_inputs=(x,), verify=False), x


ARTIFACTS: dict[str, Callable[[AnytimeModel, Tensor, Path], object]] = {
    "pt2": lambda net, x, path: export_pt2(net.extract(-1), (x,), path),
    "onnx": lambda net, x, path: export_onnx(net.extract(-1), (x,), path),
    "safetensors": lambda net, x, path: export_weights(net.extract(-1), (x,), path),
    "compressed": lambda net, x, path: save_compressed(net.extract(-1), path),
    "model": lambda net, x, path: net.save(path),
    "stages in pt2": lambda net, x, path: net.staged().export(path, ("pt2",)),
    "stages in onnx": lambda net, x, path: net.staged().export(path, ("onnx",)),
}


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_views_are_no_larger_than_what_they_see(artifact: str, tmp_path: Path) -> None:
    contents = []
    for views in (False, True):
        target = tmp_path / f"{views}.{artifact}"
        ARTIFACTS[artifact](*network(views=views), target)
        files = sorted(target.rglob("*")) if target.is_dir() else [target]
        contents.append([file.read_bytes() for file in files])
    plain, seen = (sum(map(len, one)) for one in contents)
    padding = 64 if torch.__version__ >= "2.13" else 128
    assert abs(plain - seen) <= padding  # torch pads members, and names of things differ
    for data in contents[1]:
        assert os.fsencode(Path(torch.__file__).parent.parent) not in data
        assert os.fsencode(Path(__file__).parent) not in data
