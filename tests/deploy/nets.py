"""A net whose weights are most of its file, and what onnxruntime makes of such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, Scheme, transform
from tests.backbones import images

__all__ = ["SCHEMES", "described", "levels_of", "run", "trained"]

SCHEMES = (
    "nested-channels{widths=0.25,0.5,1}",
    "nested-channels{widths=0.25,0.5,1 norms=shared heads=shared}",
    "nested-channels{widths=0.25,0.5,1 connectivity=triangular}",
    "nested-weights",
    "nested-depth",
    "nested-resolution{sizes=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
)


class Deep(nn.Module):
    """Residual blocks of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)) for _ in range(4)
        )
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


def trained(scheme: str | Scheme, backbone: nn.Module | None = None, **options: Any) -> AnytimeModel:
    """A model with other values for everything that training changes."""
    torch.manual_seed(0)
    net = transform(Deep() if backbone is None else backbone, scheme, (images(4),), verify=False, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    net.train()
    net(images(4))
    return net.eval()


def run(path: Path, level: int, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    arrays = [x.numpy() for x in inputs]
    feed = dict(zip([one.name for one in session.get_inputs()], [*arrays, np.array(level)], strict=True))
    return [torch.from_numpy(result) for result in session.run(None, feed)]


def described(path: Path) -> Any:
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    return json.loads(metadata["anytimeify"])


def levels_of(net: AnytimeModel) -> list[int]:
    return [level.index for level in net.levels if not level.training_only]
