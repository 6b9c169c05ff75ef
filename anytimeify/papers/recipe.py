"""A network of a paper: what is known of it before it is built, and what it is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from anytimeify.compiler import transform
from anytimeify.errors import MissingExtraError
from anytimeify.losses.consensus import ConsensusLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train import Training

__all__ = ["Backbone", "Entry", "Recipe"]

# One network, or the two that a scheme trains together.
Backbone: TypeAlias = nn.Module | tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Recipe:
    """Everything that a network of a paper is made of.

    Fields
        name: as in `anytimeify.papers.names()`.
        backbone: a plain network with one prediction, which knows nothing of levels; a tuple of two where the scheme
            makes one model of two networks.
        scheme: what `transform` makes of it: a scheme, or a spec string.
        example_inputs: two samples of the size that the paper uses.
        loss: the paper's objective, called as `loss(outputs, target)`.
        training: optimiser, schedule, batch, epochs.
        source: the paper and the table that it is from.
    """

    name: str
    backbone: Backbone
    scheme: Scheme | str
    example_inputs: tuple[Tensor, ...]
    loss: nn.Module
    training: Training
    source: str

    @property
    def backbones(self) -> tuple[nn.Module, ...]:
        """One network or two."""
        return _networks(self.backbone)

    def build(self, **options: Any) -> AnytimeModel:
        """`transform(backbone, scheme, example_inputs, loss=loss, **options)`.

        `options` are those of `transform`, such as `verify=False` or another `loss`; with a `taxonomy` or a `consensus`
        the objective is for these too. Raises what `transform` raises.
        """
        taxonomy, consensus = options.get("taxonomy"), Consensus.of(options.get("consensus"))
        loss = self.loss if taxonomy is None else TaxonomyLoss(self.loss, taxonomy)
        if consensus is not None:
            loss = ConsensusLoss(loss, 1.0 if consensus.trained else 0.0)
        return transform(self.backbone, self.scheme, self.example_inputs, **{"loss": loss, **options})


@dataclass(frozen=True)
class Entry:
    """One row of a paper's table: cheap to have, nothing is built. The file of a paper lists them as `ENTRIES`.

    Fields
        name: `<file>/<network>`, such as `hne/resnet50-cifar`.
        backbone: makes the backbone, or two of them, for a number of classes.
        shape: of one sample, such as (3, 32, 32).
        num_classes: of the data that the paper reports first.
        scheme, training, source: as in `Recipe`.
        loss: makes the objective.
        about: the backbone in a few words.
    """

    name: str
    about: str
    source: str
    backbone: Callable[[int], Backbone]
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
            example_inputs=(_images(self.shape),),
            loss=self.loss(),
            training=self.training,
            source=self.source,
        )

    def params(self) -> int | None:
        """Parameters of the backbone, or of both; counted without allocating any.

        None where the backbone is from a package that is not installed.
        """
        try:
            return _count(self.backbone, self.num_classes)
        except MissingExtraError:
            return None


@cache
def _count(backbone: Callable[[int], Backbone], num_classes: int) -> int:
    with torch.device("meta"):
        networks = _networks(backbone(num_classes))
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _images(shape: tuple[int, ...]) -> Tensor:
    """Two samples, the same ones every time, on the device where the backbone is made."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return images.to(torch.get_default_device())


def _networks(backbone: Backbone) -> tuple[nn.Module, ...]:
    return backbone if isinstance(backbone, tuple) else (backbone,)
