"""A network of a paper: what is known of it before it is built, and what it is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from anytimeify.compiler import transform
from anytimeify.errors import MissingExtraError
from anytimeify.losses.consensus import ConsensusLoss
from anytimeify.losses.joint import JointLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.model import AnytimeModel
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.orders import Together
from anytimeify.train.training import Training

__all__ = ["ALONE", "Backbone", "Entry", "Recipe", "alone"]

# A network with one level, itself: how those that the papers train by themselves, for comparison, are models too.
ALONE = NestedChannels((1.0,))

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
        taxonomy: coarser classes that its levels predict too.
        consensus: the last level that combines the others, as `transform` takes it.
    """

    name: str
    backbone: Backbone
    scheme: Scheme | str
    example_inputs: tuple[Tensor, ...]
    loss: nn.Module
    training: Training
    source: str
    taxonomy: Taxonomy | None = None
    consensus: Consensus | str | None = None

    @property
    def backbones(self) -> tuple[nn.Module, ...]:
        """One network or two."""
        return _networks(self.backbone)

    def build(self, **options: Any) -> AnytimeModel:
        """`transform(backbone, scheme, example_inputs, loss=loss, **options)`.

        `options` are those of `transform`, such as `verify=False` or another `loss`; `taxonomy` and `consensus` are
        the recipe's unless they are given, and the objective is for these too. Raises what `transform` raises.
        """
        options = {"taxonomy": self.taxonomy, "consensus": self.consensus, **options}
        taxonomy, consensus = options["taxonomy"], Consensus.of(options["consensus"])
        loss = self.loss if taxonomy is None else TaxonomyLoss(self.loss, taxonomy)
        if consensus is not None:
            loss = ConsensusLoss(loss, 1.0 if consensus.trained else 0.0)
        return transform(self.backbone, self.scheme, self.example_inputs, **{"loss": loss, **options})


def alone(recipe: Recipe, level: int) -> Recipe:
    """What a level of a network is, by itself and with its own parameters: trained solely, the line to beat.

    Its weights are what the level would start from; it learns from the labels alone, with all its levels together being
    one. Raises what `transform` and `extract` raise.
    """
    net = recipe.build(verify=False, taxonomy=None, consensus=None, loss=JointLoss())
    chosen = net.levels[level]
    return replace(
        recipe,
        name=f"{recipe.name}, {chosen.name} alone",
        backbone=net.extract(chosen.index),
        scheme=ALONE,
        loss=JointLoss(),
        training=replace(recipe.training, order=Together(), phases=()),
        taxonomy=None,
        consensus=None,
    )


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
        taxonomy: makes the coarser classes, where levels predict them.
        consensus: as in `Recipe`.
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
    taxonomy: Callable[[], Taxonomy] | None = None
    consensus: Consensus | str | None = None

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
            taxonomy=None if self.taxonomy is None else self.taxonomy(),
            consensus=self.consensus,
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
