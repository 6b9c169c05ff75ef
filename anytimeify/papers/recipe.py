"""A network of a paper: what is known of it before it is built, and what it is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.model import AnytimeModel
from anytimeify.papers.training import Training
from anytimeify.rewriter import Scheme
from anytimeify.transform import transform

__all__ = ["Entry", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Everything that a network of a paper is made of.

    Fields
        name: as in `anytimeify.papers.names()`.
        backbone: a plain network with one prediction, which knows nothing of levels; weights as its layers draw them.
        scheme: what `transform` makes of it: a scheme, or a spec string.
        example_inputs: two samples of the size that the paper uses.
        loss: the paper's objective, called as `loss(outputs, target)`.
        training: optimiser, schedule, batch, epochs.
        source: the paper and the table that it is from.
    """

    name: str
    backbone: nn.Module
    scheme: Scheme | str
    example_inputs: tuple[Tensor, ...]
    loss: nn.Module
    training: Training
    source: str

    def build(self, **options: Any) -> AnytimeModel:
        """`transform(backbone, scheme, example_inputs, loss=loss, **options)`.

        `options` are those of `transform`, such as `verify=False` or another `loss`. Raises what `transform` raises.
        """
        return transform(self.backbone, self.scheme, self.example_inputs, **{"loss": self.loss, **options})


@dataclass(frozen=True)
class Entry:
    """One row of a paper's table: cheap to have, nothing is built. The file of a paper lists them as `ENTRIES`.

    Fields
        name: `<file>/<network>`, such as `hne/resnet50-cifar`.
        backbone: makes the backbone for a number of classes.
        shape: of one sample, such as (3, 32, 32).
        num_classes: of the data that the paper reports first.
        scheme, training, source: as in `Recipe`.
        loss: makes the objective.
        about: the backbone in a few words.
    """

    name: str
    about: str
    source: str
    backbone: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    num_classes: int
    scheme: Scheme | str
    loss: Callable[[], nn.Module]
    training: Training

    def recipe(self, num_classes: int | None = None) -> Recipe:
        """Builds the backbone and all that goes with it."""
        classes = self.num_classes if num_classes is None else num_classes
        return Recipe(
            name=self.name,
            backbone=self.backbone(classes),
            scheme=self.scheme,
            example_inputs=(torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0)),),
            loss=self.loss(),
            training=self.training,
            source=self.source,
        )

    def params(self) -> int:
        """Parameters of the backbone; counted without allocating any."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.backbone(self.num_classes).parameters())
