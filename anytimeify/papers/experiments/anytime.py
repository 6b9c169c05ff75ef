"""I-ResNeXt and IS-ResNeXt (Lee and Shin 2018).

Figure 3 is taken for accuracy against cost, (a) on CIFAR-10, (b) on CIFAR-100 and (c) on larger images, Figure 4 for
what joint training costs thin and shallow networks, Figure 5 for labels of several granularities. What norms of their
own are for is an entry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from anytimeify.papers.anytime import levels, small
from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.recipes import levels_alone, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study
from anytimeify.papers.networks import MultiScaleDenseNet, ResNeXt
from anytimeify.papers.recipe import Recipe, alone
from anytimeify.papers.shallow import exits, multi_scale_exits
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.passes.schemes.nested_channels import NestedChannels

__all__ = ["STUDIES"]

_BRANCHES = 4  # of small networks
_PLAIN = partial(ResNeXt, depth=20, width=32, branches=_BRANCHES, branch_width=4)


def _thin(setting: Setting, norms: str = "every") -> Recipe:
    """I-ResNeXt-29."""
    scheme = NestedChannels(levels(_BRANCHES if setting.small else 8), where="inner", norms=norms)  # type: ignore[arg-type]  # checked there
    return printed(setting, "anytime/i-resnext-29", _PLAIN, scheme=scheme)


def _chunked(setting: Setting) -> Recipe:
    """IS-ResNeXt-47."""
    backbone = partial(small, depth=20, width=32, chunks=_BRANCHES)
    scheme = NestedChannels(levels(_BRANCHES), connectivity="triangular", norms="every")
    return printed(setting, "anytime/is-resnext-47-cifar", backbone, scheme)


def _chunked_large(setting: Setting) -> Recipe:
    """IS-ResNeXt-62, for images of 224x224; the small one is for small images, and wider than that of the others."""
    backbone = partial(small, depth=20, width=48, chunks=_BRANCHES)
    scheme = NestedChannels(levels(_BRANCHES), connectivity="triangular", norms="every")
    return printed(setting, "anytime/is-resnext-62-imagenet", backbone, scheme)


def _shallow(setting: Setting) -> Recipe:
    return printed(setting, "shallow/resnext-29", _PLAIN, AuxiliaryBranches(exits(20)))


def _multi_scale(setting: Setting) -> Recipe:
    backbone = partial(MultiScaleDenseNet, layers=8, growth=4, stem=8)
    return printed(setting, "shallow/msdnet-12", backbone, AuxiliaryBranches(multi_scale_exits(8)))


def _alone(make: partial[Recipe], setting: Setting, what: str) -> list[Contender]:
    """The first, the middle and the last level of a network, each by itself."""
    count = _BRANCHES if setting.small else 8
    chosen = dict.fromkeys((0, count // 2, count - 1))
    return levels_alone(make, {level: f"{what} {level + 1} alone" for level in chosen})


def _curves(setting: Setting) -> list[Contender]:
    thin = partial(_thin, setting)
    return [
        Contender("I-ResNeXt", thin),
        Contender("IS-ResNeXt", partial(_chunked, setting)),
        Contender("shallow", partial(_shallow, setting)),
        Contender("MSDNet-like", partial(_multi_scale, setting)),
        *_alone(thin, setting, "width"),
    ]


def _large_curves(setting: Setting) -> list[Contender]:
    chunked = partial(_chunked_large, setting)
    count = _BRANCHES if setting.small else 5
    return [
        Contender("IS-ResNeXt", chunked),
        Contender("MSDNet-like", partial(_multi_scale, setting)),
        *levels_alone(chunked, {level: f"width {level + 1} alone" for level in (0, count - 1)}),
    ]


def _thin_over_shallow(results: Results) -> Iterator[Comparison]:
    for name in ("I-ResNeXt", "IS-ResNeXt"):
        if name in results.networks:
            yield from _over_dearer(
                results, name, [one for one in ("shallow", "MSDNet-like") if one in results.networks]
            )


def _over_dearer(results: Results, name: str, others: list[str]) -> Iterator[Comparison]:
    """The cheapest level over the others' cheapest, and the best over their best."""
    for other in others:
        yield Comparison(f"cheapest level, {name} over {other}", (name, 0), (other, 0))
        best, theirs = _best(results, name), _best(results, other)
        yield Comparison(f"best level, {name} over {other}", (name, best), (other, theirs))


def _best(results: Results, network: str) -> int:
    """The level of the highest accuracy, which need not be the full one."""
    means = [row.mean for row in results.levels(network)]
    return means.index(max(means))


# What joint training costs.


def _joint(setting: Setting) -> list[Contender]:
    thin, shallow = partial(_thin, setting), partial(_shallow, setting)
    depths = (5 if setting.small else 8) - 1
    return [
        Contender("thin", thin),
        Contender("shallow", shallow),
        *_alone(thin, setting, "thin"),
        *levels_alone(shallow, {0: "shallow 1 alone", depths // 2: f"shallow {depths // 2 + 1} alone"}),
    ]


def _thin_lose_less(results: Results) -> Iterator[Comparison]:
    """As printed: at most 1.2 points for thin networks; the thinnest over the shallowest."""
    for row in results.rows():
        if row.alone and row.network.startswith("thin"):
            level = int(row.network.split()[1]) - 1
            yield Comparison(f"thin {level + 1}, together over alone", ("thin", level), (row.network, 0), -1.2)
    yield Comparison("the thinnest over the shallowest", ("thin", 0), ("shallow", 0))


def _norms(setting: Setting) -> list[Contender]:
    thin = partial(_thin, setting)
    return [
        Contender("norms of their own", thin),
        Contender("one norm for all", partial(_thin, setting, "shared")),
        *_alone(thin, setting, "width"),
    ]


def _own_norms(results: Results) -> Iterator[Comparison]:
    for place, what in ((0, "cheapest"), (-1, "full")):
        yield Comparison(
            f"{what} level, own norms over one", ("norms of their own", place), ("one norm for all", place)
        )


# Labels of several granularities.


def _hierarchical(setting: Setting) -> Recipe:
    return replace(_chunked(setting), taxonomy=setting.taxonomy)


def _hierarchy(setting: Setting) -> list[Contender]:
    chunked = partial(_chunked, setting)
    last = (_BRANCHES if setting.small else 6) - 1
    return [
        Contender("all granularities", partial(_hierarchical, setting)),
        Contender("fine classes only", chunked),
        Contender("fine classes, width 1 alone", partial(_level_alone, chunked, 0), alone=True),
        Contender(f"fine classes, width {last + 1} alone", partial(_level_alone, chunked, last), alone=True),
    ]


def _level_alone(make: partial[Recipe], level: int) -> Recipe:
    return alone(make(), level)


def _coarse_are_easier(results: Results) -> Iterator[Comparison]:
    """Coarse classes of the cheapest level over the fine ones of the full level, and fine ones at no loss."""
    rows = results.levels("all granularities")
    fine = rows[0].level.rpartition("/")[2]
    full = next(row.level for row in reversed(rows) if row.level.endswith(f"/{fine}"))
    coarse = next(row.level for row in rows if not row.level.endswith(f"/{fine}"))
    name = "all granularities"
    yield Comparison(
        "coarse classes at the cheapest level over fine ones at the full level", (name, coarse), (name, full)
    )
    yield Comparison(
        "fine classes of the full level, with coarse ones over without", (name, full), ("fine classes only", -1), -1.0
    )


_SOURCE = "Lee and Shin 2018"
_CLAIM = (
    "Thin sub-networks of one network are better than shallow ones and than those of a multi-scale dense network, at "
    "the cheapest level and at the best."
)

STUDIES = (
    Study(
        name="anytime/figure-3a",
        about="Accuracy against cost, CIFAR-10 in print",
        source=f"{_SOURCE}, Figure 3a",
        claim=_CLAIM,
        contenders=_curves,
        comparisons=_thin_over_shallow,
    ),
    Study(
        name="anytime/figure-3b",
        about="Accuracy against cost, CIFAR-100 in print",
        source=f"{_SOURCE}, Figure 3b",
        claim=_CLAIM,
        contenders=_curves,
        comparisons=_thin_over_shallow,
    ),
    Study(
        name="anytime/figure-3c",
        about="Accuracy against cost, ImageNet in print",
        source=f"{_SOURCE}, Figure 3c",
        claim="IS-ResNeXt is better than a multi-scale dense network at the cheapest level and at the best.",
        contenders=_large_curves,
        comparisons=_thin_over_shallow,
    ),
    Study(
        name="anytime/figure-4",
        about="Thin and shallow sub-networks, together and by themselves",
        source=f"{_SOURCE}, Figure 4",
        claim="Training thin sub-networks together costs each of them at most 1.2 points, and the thinnest is better "
        "than the shallowest.",
        contenders=_joint,
        comparisons=_thin_lose_less,
    ),
    Study(
        name="anytime/figure-5",
        about="Labels of several granularities",
        source=f"{_SOURCE}, Figure 5",
        claim="Coarse classes are predicted better by the cheapest level than fine ones by all of the network, and "
        "fine classes lose nothing by it (within a point).",
        contenders=_hierarchy,
        comparisons=_coarse_are_easier,
    ),
    Study(
        name="anytime/norms",
        about="Norms of each level's own",
        source=f"{_SOURCE}, section 4.1",
        claim="Without norms of their own the levels of I-ResNeXt fail.",
        contenders=_norms,
        comparisons=_own_norms,
    ),
)
