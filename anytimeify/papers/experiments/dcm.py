"""Dense cross-layer mutual distillation (Yao and Sun 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from anytimeify.losses import CrossLayerMutual
from anytimeify.papers.dcm import pooled
from anytimeify.papers.dhm import residual
from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.recipes import plain, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study
from anytimeify.papers.networks import WideResNet
from anytimeify.papers.networks.initialisers import fan_in
from anytimeify.papers.recipe import Recipe
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.mutual_distillation import MutualDistillation

__all__ = ["STUDIES"]

_RATE = 0.1  # of small trainings, of sums and of networks alone: warmed up, all of them learn at it
_BOTH = residual((1, 1))
_EARLIEST = Branch("conv1", repeats={"layer1": 1, "layer2": 1, "layer3": 1})


def _small(num_classes: int) -> tuple[nn.Module, nn.Module]:
    first, second = (WideResNet(num_classes, depth=10, widening=1, initialise=fan_in) for _ in range(2))
    return first, second


def _pair(
    setting: Setting,
    name: str,
    branches: tuple[Branch, ...] | int,
    loss: Callable[[], CrossLayerMutual] = CrossLayerMutual,
) -> Recipe:
    """A recipe of a pair of WRN-28-10; `branches`: those of the small pair in its place."""
    return printed(setting, f"dcm/wrn-28-10{name}", _small, MutualDistillation(branches), loss=loss, rate=_RATE)


def _alone(setting: Setting) -> Contender:
    return plain(partial(_pair, setting, "", _BOTH), "one network alone")


def _dcm(setting: Setting) -> Contender:
    return Contender("DCM", partial(_pair, setting, "", _BOTH))


def _mutual(setting: Setting) -> Contender:
    return Contender("mutual learning", partial(_pair, setting, "-mutual", 0))


def _against_mutual(setting: Setting) -> list[Contender]:
    apart = partial(CrossLayerMutual, weight=0.0)
    return [
        _alone(setting),
        Contender("deep supervision", partial(_pair, setting, "", _BOTH, apart)),
        _mutual(setting),
        _dcm(setting),
    ]


def _layers(setting: Setting) -> list[Contender]:
    same = partial(CrossLayerMutual, cross_stage=0.0)
    return [
        _alone(setting),
        _mutual(setting),
        Contender("late heads", partial(_pair, setting, "-one-branch", _BOTH[1:])),
        Contender("same stages alone", partial(_pair, setting, "", _BOTH, same)),
        _dcm(setting),
        Contender("three heads", partial(_pair, setting, "-three-branches", (_EARLIEST, *_BOTH))),
    ]


def _heads(setting: Setting) -> list[Contender]:
    return [
        _alone(setting),
        Contender("APFC", partial(_pair, setting, "-apfc", pooled())),
        Contender("Narrow", partial(_pair, setting, "-narrow", residual((1, 1), width=0.5))),
        _dcm(setting),
    ]


def _over(better: str, *others: str) -> Iterator[Comparison]:
    """Both backbones of a pair over those of other pairs; a network by itself has one."""
    for other in others:
        for place in ("first", "second"):
            row: int | str = 0 if "alone" in other and "stages" not in other else f"{place}/full"
            yield Comparison(f"{place} network, {better} over {other}", (better, f"{place}/full"), (other, row))


_SOURCE = "Yao and Sun 2020"


def _dcm_is_best(*others: str) -> Callable[[Results], Iterator[Comparison]]:
    return lambda results: _over("DCM", *others)


STUDIES = (
    Study(
        name="dcm/mutual",
        about="Against mutual learning, and against deep supervision",
        source=_SOURCE,
        claim="Two networks that distil each other across layers are better than with mutual learning of their "
        "predictions alone, and than either by itself.",
        contenders=_against_mutual,
        comparisons=_dcm_is_best("mutual learning", "one network alone"),
        form="bars",
    ),
    Study(
        name="dcm/q",
        about="Which layers have heads, and which heads teach each other",
        source=f"{_SOURCE}, ablations",
        claim="Heads at two stages, of the same and of different stages teaching each other, are better than those of "
        "the late stage, than those of the same stages, and than none.",
        contenders=_layers,
        comparisons=_dcm_is_best("mutual learning", "late heads", "same stages alone"),
        form="bars",
    ),
    Study(
        name="dcm/heads",
        about="What heads are made of: pooling and a classifier (APFC), narrow blocks, the network's blocks",
        source=f"{_SOURCE}, ablations",
        claim="Heads of the network's own blocks are better than pooled and narrow ones.",
        contenders=_heads,
        comparisons=_dcm_is_best("APFC", "Narrow"),
        form="bars",
    ),
)
