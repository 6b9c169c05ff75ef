"""Hierarchical neural ensembles (Ruiz and Verbeek 2020). Figure 4 is taken for distillation of leaves against that of
nested ensembles, with the diversity of the leaves; Figure 6 for the ensemble against networks by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from anytimeify.losses import (
    CoDistillation,
    HierarchicalCoDistillation,
    HierarchicalLoss,
    IndependentLoss,
    diversity,
)
from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.recipes import plain, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study
from anytimeify.papers.hne import ResNet50
from anytimeify.papers.recipe import Recipe
from anytimeify.runtime.model import AnytimeModel

__all__ = ["STUDIES"]

_SMALL = partial(ResNet50, width=0.25, layers=(1, 1, 1, 1))
_RATE = 0.1  # of small trainings
_WIDER = (1.0, 1.5, 2.0, 3.0)  # single networks, whose costs cover those of the levels


def _hne(setting: Setting, loss: Callable[..., nn.Module], architecture: str = "", **options: float) -> Recipe:
    """Sums over leaves, as printed."""
    name = f"hne/resnet50-cifar{architecture}"
    return printed(setting, name, _SMALL, loss=partial(loss, reduction="sum", **options), rate=_RATE)


def _alone(setting: Setting) -> Contender:
    """The backbone, what one leaf is."""
    return plain(partial(printed, setting, "hne/resnet50-cifar", _SMALL, rate=_RATE), "one leaf alone")


_OBJECTIVES: dict[str, Callable[[Setting], Recipe]] = {
    "L_I": partial(_hne, loss=IndependentLoss),
    "L_H": partial(_hne, loss=HierarchicalLoss),
    "L_I + L_H": partial(_hne, loss=HierarchicalLoss, independent=1.0),
    "L_I + L_HD": partial(_hne, loss=HierarchicalCoDistillation),
}


def _table(setting: Setting) -> list[Contender]:
    return [*(Contender(name, partial(make, setting)) for name, make in _OBJECTIVES.items()), _alone(setting)]


def _distilled_is_best(results: Results) -> Iterator[Comparison]:
    for other in ("L_I", "L_H", "L_I + L_H"):
        for place, leaves in ((0, "1 leaf"), (4, "16 leaves")):
            yield Comparison(f"{leaves}, L_I + L_HD over {other}", ("L_I + L_HD", place), (other, place))


def _leaves(net: AnytimeModel, images: Tensor, labels: Tensor) -> Mapping[str, float]:
    """The accuracy of every leaf; of a network that is no ensemble, its own."""
    net.eval()
    with torch.no_grad():
        outputs = net(images)
    right = [100 * float((leaf.argmax(1) == labels).float().mean()) for leaf in outputs.members or outputs.levels]
    return {f"leaf {place}": one for place, one in enumerate(right, 1)}


def _diversity(net: AnytimeModel, images: Tensor, labels: Tensor) -> Mapping[str, float]:
    net.eval()
    with torch.no_grad():
        return {"diversity": float(diversity(net(images)))}


def _distillations(setting: Setting) -> list[Contender]:
    made: dict[str, Callable[[], Recipe]] = {
        "L_I": partial(_hne, setting, IndependentLoss),
        "L_I + L_D": partial(_hne, setting, CoDistillation),
        "L_I + L_HD": partial(_hne, setting, HierarchicalCoDistillation),
    }
    contenders = [Contender(name, make, measures=_diversity) for name, make in made.items()]
    return [*contenders, _alone(setting)]


def _nested_distillation_keeps_diversity(results: Results) -> Iterator[Comparison]:
    one, all_ = 0, 4
    yield Comparison("1 leaf, L_I + L_HD over L_I", ("L_I + L_HD", one), ("L_I", one))
    yield Comparison("16 leaves, L_I + L_HD over L_I + L_D", ("L_I + L_HD", all_), ("L_I + L_D", all_))
    more = ("L_I + L_HD", "diversity"), ("L_I + L_D", "diversity")
    yield Comparison("diversity, L_I + L_HD over L_I + L_D", *more, unit="")


def _architectures(setting: Setting) -> list[Contender]:
    kinds = {"hierarchical": "", "multi-branch": "-multibranch", "independent": "-independent"}
    distilled = {name: partial(_hne, setting, HierarchicalCoDistillation, kind) for name, kind in kinds.items()}
    return [*(Contender(name, make) for name, make in distilled.items()), _alone(setting)]


def _tree_is_cheaper(results: Results) -> Iterator[Comparison]:
    """At 2, 4 and 8 leaves the tree costs less than the others at as many; is it as good?"""
    for place, leaves in ((1, 2), (2, 4), (3, 8)):
        for other in ("multi-branch", "independent"):
            what = f"{leaves} leaves, hierarchical over {other}"
            yield Comparison(what, ("hierarchical", place), (other, place), -0.5)


def _against_networks(setting: Setting) -> list[Contender]:
    """The ensemble, and single networks of more and more channels."""
    backbones = {width: partial(ResNet50, width=width * 0.25, layers=(1, 1, 1, 1)) for width in _WIDER}
    if not setting.small:
        backbones = {width: partial(ResNet50, width=width) for width in _WIDER}
    networks = [
        plain(partial(_single, setting, backbone), f"{width:g} times the channels, alone")
        for width, backbone in backbones.items()
    ]
    return [Contender("HNE", partial(_hne, setting, HierarchicalCoDistillation)), *networks]


def _single(setting: Setting, backbone: Callable[[int], nn.Module]) -> Recipe:
    made = printed(setting, "hne/resnet50-cifar", _SMALL, rate=_RATE)
    return replace(made, backbone=backbone(setting.classes))


def _as_good_as_networks(results: Results) -> Iterator[Comparison]:
    """Every level over the largest single network that costs no more."""
    singles = [row for row in results.rows() if row.alone]
    for place, row in enumerate(results.levels("HNE")):
        cheaper = [single for single in singles if (single.macs or 0) <= 1.05 * (row.macs or 0)]
        best = max(cheaper, key=lambda single: single.macs or 0, default=singles[0])
        yield Comparison(f"{row.level} over {best.network}", ("HNE", place), (best.network, 0))


def _every_leaf(setting: Setting) -> list[Contender]:
    made = {name: partial(_OBJECTIVES[name], setting) for name in ("L_I", "L_I + L_HD")}
    contenders = [Contender(name, make, measures=_leaves) for name, make in made.items()]
    return [*contenders, replace(_alone(setting), measures=_leaves)]


def _first_leaf_gains(results: Results) -> Iterator[Comparison]:
    yield Comparison("leaf 1, L_I + L_HD over L_I", ("L_I + L_HD", "leaf 1"), ("L_I", "leaf 1"))
    yield Comparison("with L_I + L_HD, leaf 1 over leaf 16", ("L_I + L_HD", "leaf 1"), ("L_I + L_HD", "leaf 16"))


_SOURCE = "Ruiz and Verbeek 2020"

STUDIES = (
    Study(
        name="hne/table-1",
        about="Four objectives of one hierarchical ensemble",
        source=f"{_SOURCE}, Table 1",
        claim="With hierarchical co-distillation, L_I + L_HD, ensembles of 1 to 16 leaves are better than with L_I, "
        "with L_H and with both.",
        contenders=_table,
        comparisons=_distilled_is_best,
    ),
    Study(
        name="hne/figure-4",
        about="Distilling leaves, or nested ensembles",
        source=f"{_SOURCE}, Figure 4",
        claim="Distilling to nested ensembles makes few leaves better without making all leaves alike, which "
        "distilling to every leaf does.",
        contenders=_distillations,
        comparisons=_nested_distillation_keeps_diversity,
        measured="diversity of the leaves",
    ),
    Study(
        name="hne/figure-5",
        about="Three architectures: a tree, branches behind block 2, networks that share nothing",
        source=f"{_SOURCE}, Figure 5",
        claim="A tree is as good as branches and independent networks of as many leaves (within half a point), for "
        "less compute.",
        contenders=_architectures,
        comparisons=_tree_is_cheaper,
    ),
    Study(
        name="hne/figure-6",
        about="Levels of one ensemble, and single networks by themselves",
        source=f"{_SOURCE}, Figure 6",
        claim="One hierarchical ensemble is better at every budget than a network of that budget that is trained by "
        "itself.",
        contenders=_against_networks,
        comparisons=_as_good_as_networks,
    ),
    Study(
        name="hne/figure-9",
        about="The accuracy of every leaf",
        source=f"{_SOURCE}, Figure 9",
        claim="Hierarchical co-distillation makes the first leaves the best ones, which small ensembles consist of.",
        contenders=_every_leaf,
        comparisons=_first_leaf_gains,
        form="values",
        measured="accuracy of a leaf, %",
    ),
)
