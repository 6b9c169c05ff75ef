"""The accuracy of every level."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.modes import in_mode
from anytimeify.errors import MissingExtraError
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.loading import IGNORED

__all__ = ["accuracies", "require_metrics"]


def accuracies(
    net: AnytimeModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Any = nullcontext,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The share of samples that each level gets right, by its name; with a taxonomy one for each granularity that it
    has, `"width 0.5/coarse"`. Labels of -100 do not count. In eval mode; modes are afterwards as before.

    In a group of processes the share of all samples that these have."""
    require_metrics()
    from torchmetrics.classification import MulticlassAccuracy

    taxonomy = net.taxonomy
    lift = TaxonomyLoss(nn.Identity(), taxonomy) if taxonomy is not None else None
    found: dict[str, Any] = {}
    with in_mode(net, training=False), torch.inference_mode(False), torch.no_grad():
        for inputs, labels in batches:
            labels = labels.to(device)
            with autocast():
                levels = net(inputs.to(device)).levels
            targets = lift.targets(labels) if lift is not None else (labels,)
            for level, prediction in zip(net.levels, levels, strict=True):
                for name, place, logits in _named(net, level.index, prediction):
                    if name not in found:
                        metric = MulticlassAccuracy(logits.shape[1], average="micro", ignore_index=IGNORED)
                        found[name] = metric.to(device)
                    found[name].update(logits, targets[place])
    return {name: float(metric.compute()) for name, metric in found.items()}


def _named(net: AnytimeModel, index: int, prediction: Any) -> list[tuple[str, int, Tensor]]:
    """Every prediction of a level with its name and the place of its granularity."""
    level = net.levels[index].name
    if net.taxonomy is None:
        return [(level, 0, prediction)]
    names = net.granularities[index]
    order = net.taxonomy.granularities
    return [(f"{level}/{name}", order.index(name), one) for name, one in zip(names, prediction, strict=True)]


def require_metrics() -> None:
    """Raises `MissingExtraError` unless torchmetrics is installed."""
    try:
        import torchmetrics  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MissingExtraError("torchmetrics", "train", "evaluation") from error
