"""torchvision's one-stage detectors, backbone and heads: every level returns the maps that their own loss reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import transform

pytestmark = pytest.mark.zoo

SCHEMES = (
    "nested-channels{widths=0.5,1}",
    "nested-channels{widths=0.5,1 connectivity=triangular}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
    "nested-depth{depths=0.5,1}",
)
X = torch.randn(2, 3, 64, 64)


class Maps(nn.Module):
    """Of a detector, what lies between the images and its loss."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


def _detector(name: str) -> Any:
    from torchvision.models import detection

    make = getattr(detection, f"{name}_resnet50_fpn")
    return make(weights=None, weights_backbone=None, num_classes=5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_levels_are_trained_by_the_detectors_own_loss(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    detector = _detector(name)
    net = transform(Maps(detector), scheme, X, output="all").train()
    optimizer = torch.optim.SGD(net.parameters(), 0.001)
    losses = []
    for _ in range(3):
        loss = torch.stack([_loss(detector, maps) for maps in net(X).results]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(level.cost.macs < net.levels[-1].cost.macs for level in net.levels[:-1])


def _loss(detector: Any, maps: dict[str, Tensor]) -> Tensor:
    from torchvision.models.detection.image_list import ImageList

    images = ImageList(X, [(64, 64)] * len(X))
    with torch.no_grad():
        features = list(detector.backbone(X).values())
    anchors = detector.anchor_generator(images, features)
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in X]
    if type(detector).__name__ == "FCOS":
        counts = [f.shape[2] * f.shape[3] * detector.anchor_generator.num_anchors_per_location()[0] for f in features]
        found = detector.compute_loss(targets, maps, anchors, counts)
    else:
        found = detector.compute_loss(targets, maps, anchors)
    return torch.stack(list(found.values())).sum()
