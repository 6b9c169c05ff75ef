"""Dynamic hierarchical mimicking (Li and Chen 2020): sections of its supplement, and the third branch of its ablation.

Section F is taken for networks with dropout, H for how alike the gradients of branches are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.losses import HierarchicalMimicking
from anytimeify.papers.dhm import residual
from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.recipes import plain, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study
from anytimeify.papers.networks import CifarResNet, WideResNet
from anytimeify.papers.recipe import Recipe
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.data import Data, Held

__all__ = ["STUDIES"]

_SMALL = partial(CifarResNet, depth=8)
_TWO = AuxiliaryBranches(residual((1, 1)))
_RATE = 0.1  # of small trainings, of sums and of networks alone: warmed up, all of them learn at it
_WRONG = (0.2, 0.5)
_FULL = -1

Loss = Callable[[], HierarchicalMimicking]
_SUPERVISED: Loss = partial(HierarchicalMimicking, alpha=0.0)


def _network(
    setting: Setting,
    loss: Loss = HierarchicalMimicking,
    name: str = "resnet-32",
    scheme: AuxiliaryBranches | None = None,
) -> Recipe:
    return printed(setting, f"dhm/{name}", _SMALL, _TWO, scheme=scheme, loss=loss, rate=_RATE)


def _three(setting: Setting) -> list[Contender]:
    """The backbone by itself, deep supervision, mimicking."""
    return [
        plain(partial(_network, setting), "backbone alone"),
        Contender("deep supervision", partial(_network, setting, _SUPERVISED)),
        Contender("mimicking", partial(_network, setting)),
    ]


def _better(name: str, *others: str) -> Iterator[Comparison]:
    """The backbone of one over those of others."""
    for other in others:
        yield Comparison(f"backbone, {name} over {other}", (name, _FULL), (other, _FULL))


def _bernoulli(setting: Setting) -> list[Contender]:
    drawn: Loss = partial(HierarchicalMimicking, sampling="bernoulli")
    return [*_three(setting), Contender("Bernoulli", partial(_network, setting, drawn))]


def _third(setting: Setting) -> list[Contender]:
    """One more branch, which forks after the stem and is as short as the early one: in print it is ResNet-18's, after
    the first stage."""
    middle, last = (1, 1) if setting.small else (5, 3)
    first = Branch("bn1", repeats={"layer1": last, "layer2": last, "layer3": last})
    third = AuxiliaryBranches((first, *residual((middle, last))))
    return [*_three(setting), Contender("three branches", partial(_network, setting, scheme=third))]


# Labels that are wrong.


def _wrong(share: float, data: Data, seed: int) -> Data:
    """A share of the training labels drawn among all classes, for good; test labels are right."""
    if not isinstance(data.train, Held):
        raise ArgumentValueError(f"{data.name}: wrong labels need samples in memory")
    generator = torch.Generator().manual_seed(seed)
    labels = data.train.labels
    drawn = torch.randint(len(data.classes), labels.shape, generator=generator)
    changed = torch.rand(labels.shape, generator=generator) < share
    return replace(data, train=Held(data.train.inputs, torch.where(changed, drawn, labels)))


def _corrupted(setting: Setting) -> list[Contender]:
    return [
        replace(one, name=f"{one.name}, {share:.0%} wrong", data=partial(_wrong, share))
        for share in _WRONG
        for one in _three(setting)
    ]


def _robust(results: Results) -> Iterator[Comparison]:
    for share in _WRONG:
        names = [f"{name}, {share:.0%} wrong" for name in ("mimicking", "deep supervision", "backbone alone")]
        yield from _better(*names)


# Dropout.


def _with_dropout(setting: Setting) -> list[Contender]:
    def make(loss: Loss, rate: float) -> Recipe:
        name = "wrn-28-10-dropout" if rate else "wrn-28-10"
        small = partial(WideResNet, depth=10, widening=1, dropout=rate)
        return printed(setting, f"dhm/{name}", small, _TWO, loss=loss, rate=_RATE)

    return [
        plain(partial(make, HierarchicalMimicking, 0.0), "backbone alone"),
        plain(partial(make, HierarchicalMimicking, 0.3), "dropout alone"),
        Contender("mimicking", partial(make, HierarchicalMimicking, 0.0)),
        Contender("mimicking and dropout", partial(make, HierarchicalMimicking, 0.3)),
    ]


# How alike gradients are.


def _correlation(net: AnytimeModel, images: Tensor, labels: Tensor) -> Mapping[str, float]:
    """The correlation between the gradients that two levels' cross-entropies have in the image, a mean over images,
    for every pair of levels; and the mean of these."""
    net.eval()
    images = images.clone().requires_grad_()
    outputs = net(images).levels
    gradients = [
        torch.autograd.grad(F.cross_entropy(one, labels, reduction="sum"), images, retain_graph=True)[0].flatten(1)
        for one in outputs
    ]
    names = [level.name.removeprefix("branch at ") for level in net.levels]
    centred = [one - one.mean(1, keepdim=True) for one in gradients]
    found = {
        f"{names[one]} and {names[other]}": float(F.cosine_similarity(centred[one], centred[other]).mean())
        for one, other in combinations(range(len(centred)), 2)
    }
    return {**found, "all pairs": sum(found.values()) / len(found)}


def _correlations(setting: Setting) -> list[Contender]:
    alone, *others = _three(setting)
    return [alone, *(replace(one, measures=_correlation) for one in others)]


def _more_alike(results: Results) -> Iterator[Comparison]:
    what = "correlation of gradients, mimicking over deep supervision"
    yield Comparison(what, ("mimicking", "all pairs"), ("deep supervision", "all pairs"), unit="")


_SOURCE = "Li and Chen 2020"

STUDIES = (
    Study(
        name="dhm/d",
        about="Branches that are drawn once an epoch",
        source=f"{_SOURCE}, supplement D",
        claim="Mimicking between branches that are drawn for every epoch makes the backbone better than deep "
        "supervision, and than training it by itself.",
        contenders=_bernoulli,
        comparisons=lambda results: _better("Bernoulli", "deep supervision", "backbone alone"),
        form="bars",
    ),
    Study(
        name="dhm/e",
        about="Training labels of which some are wrong",
        source=f"{_SOURCE}, supplement E",
        claim="Where 20 or 50 % of the labels are drawn at random, mimicking makes the backbone better than deep "
        "supervision, and than training it by itself.",
        contenders=_corrupted,
        comparisons=_robust,
        form="bars",
    ),
    Study(
        name="dhm/f",
        about="Together with dropout",
        source=f"{_SOURCE}, supplement F",
        claim="Mimicking makes a network better with dropout and without.",
        contenders=_with_dropout,
        comparisons=lambda results: (
            *_better("mimicking", "backbone alone"),
            *_better("mimicking and dropout", "dropout alone"),
        ),
        form="bars",
    ),
    Study(
        name="dhm/h",
        about="How alike the gradients of the branches are",
        source=f"{_SOURCE}, supplement H",
        claim="Mimicking makes the gradients of the branches in what they share more alike than deep supervision does.",
        contenders=_correlations,
        comparisons=_more_alike,
        form="values",
        measured="correlation of gradients in the image",
    ),
    Study(
        name="dhm/branches",
        about="A third branch",
        source=f"{_SOURCE}, ablations",
        claim="With a third, earlier branch the backbone is better than by itself.",
        contenders=_third,
        comparisons=lambda results: _better("three branches", "backbone alone"),
        form="bars",
    ),
)
