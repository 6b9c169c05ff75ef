"""NestedNet (Kim, Ahn and Oh 2018). Which panels its figures have is not known here: the first is taken for nested
levels against networks by themselves (its knowledge distillation), the second for coarse and fine classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.recipes import levels_alone, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender, Study
from anytimeify.papers.nestednet import CONSENSUS, DENSITIES, DEPTHS, WIDTHS
from anytimeify.papers.networks import PreActivationResNet
from anytimeify.papers.recipe import Recipe, alone
from anytimeify.passes.scheme import Scheme
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_depth import NestedDepth
from anytimeify.passes.schemes.nested_weights import NestedWeights
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.data import Data, Held
from anytimeify.train.data.samples import Batch, Samples

__all__ = ["STUDIES"]

_CHANNELS = NestedChannels(WIDTHS)
_TWO = NestedChannels((WIDTHS[0], 1.0))
_SMALL = partial(PreActivationResNet, depth=8)
_NAMES = ("core", "middle", "full")
_EQUAL = -1.0  # points: as good as, where a claim says so
_RATE = 0.2  # of small trainings: the best for levels together, and for networks alone
_REFRESH = 50  # steps between two estimates of masks, which the paper does not print


def _nested(setting: Setting, classes: int | None = None) -> Recipe:
    return printed(setting, "nestednet/wrn-32-4", _SMALL, _CHANNELS, rate=_RATE, classes=classes)


def _distillation(setting: Setting) -> list[Contender]:
    make = partial(_nested, setting)
    return [Contender("NestedNet", make), *levels_alone(make, {k: f"{name} alone" for k, name in enumerate(_NAMES)})]


def _as_good(results: Results) -> Iterator[Comparison]:
    for level, name in enumerate(_NAMES):
        yield Comparison(f"{name}, nested over alone", ("NestedNet", level), (f"{name} alone", 0), _EQUAL)


# Coarse and fine classes.


def _taxonomy(setting: Setting, *, fine_head: bool) -> Taxonomy:
    """Coarsest classes for the core, finest for the full level."""
    given = setting.taxonomy
    fine, coarse = given.granularities[0], given.granularities[-1]
    core = (fine, coarse) if fine_head else (coarse,)
    return given.with_levels(heads=(core, (fine,)), serve=(coarse, fine))


def _hierarchical(setting: Setting, consensus: str | None = None) -> Recipe:
    made = printed(setting, "nestednet/wrn-14-4-hierarchy", _SMALL, _TWO, rate=_RATE)
    training = made.training
    if consensus == "learned":
        share = training.epochs / 205  # of the epochs that the levels have in print
        epochs = max(1, round(CONSENSUS.epochs * share))
        training = replace(training, phases=(replace(CONSENSUS, epochs=epochs, schedule=None),))
    taxonomy = _taxonomy(setting, fine_head=consensus is not None)
    return replace(made, taxonomy=taxonomy, consensus=consensus, training=training)


def _core_alone(setting: Setting) -> Recipe:
    """The core by itself, for the coarse classes."""
    made = printed(
        setting, "nestednet/wrn-14-4-hierarchy", _SMALL, _TWO, rate=_RATE, classes=setting.taxonomy.sizes[-1]
    )
    return alone(made, 0)


def _full_alone(setting: Setting) -> Recipe:
    return alone(printed(setting, "nestednet/wrn-14-4-hierarchy", _SMALL, _TWO, rate=_RATE), 1)


def _coarse(setting: Setting, data: Data, seed: int) -> Data:
    """The same data with coarse labels."""
    above = setting.taxonomy
    names = tuple(map(str, range(above.sizes[-1])))
    return replace(
        data, train=_relabelled(data.train, above), test=_relabelled(data.test, above), classes=names, taxonomy=None
    )


def _relabelled(samples: Samples, taxonomy: Taxonomy) -> Samples:
    if not isinstance(samples, Held):
        return _Coarse(samples, taxonomy)
    return Held(samples.inputs, taxonomy.targets(samples.labels)[-1])


class _Coarse:
    """Samples that are read when they are asked for, with coarse labels."""

    def __init__(self, samples: Samples, taxonomy: Taxonomy) -> None:
        self.samples, self.taxonomy = samples, taxonomy

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, places: Tensor) -> Batch:
        inputs, labels = self.samples.take(places)
        return inputs, self.taxonomy.targets(labels)[-1]


def _by_themselves(setting: Setting) -> list[Contender]:
    return [
        Contender("coarse alone", partial(_core_alone, setting), alone=True, data=partial(_coarse, setting)),
        Contender("fine alone", partial(_full_alone, setting), alone=True),
    ]


def _hierarchy(setting: Setting) -> list[Contender]:
    return [Contender("NestedNet", partial(_hierarchical, setting)), *_by_themselves(setting)]


def _hierarchy_as_good(results: Results) -> Iterator[Comparison]:
    yield Comparison("coarse classes, nested over alone", ("NestedNet", 0), ("coarse alone", 0), _EQUAL)
    yield Comparison("fine classes, nested over alone", ("NestedNet", 1), ("fine alone", 0), _EQUAL)


def _consensus(setting: Setting) -> list[Contender]:
    return [
        Contender("NestedNet-A", partial(_hierarchical, setting, "average")),
        Contender("NestedNet-L", partial(_hierarchical, setting, "learned")),
        *_by_themselves(setting),
    ]


def _consensus_is_better(results: Results) -> Iterator[Comparison]:
    """Over the full level of the same network, in the finest classes; these come first in a level."""
    for name in ("NestedNet-A", "NestedNet-L"):
        rows = [row.level for row in results.levels(name)]
        fine = rows[0].rpartition("/")[2]
        full = [row for row in rows if row.endswith(f"/{fine}") and not row.startswith("consensus")][-1]
        yield Comparison(f"{name} over its full level", (name, f"consensus/{fine}"), (name, full))
        yield Comparison(f"{name} over fine classes alone", (name, f"consensus/{fine}"), ("fine alone", 0))


# Deep compression.


def _compressed(setting: Setting, scheme: Scheme, name: str) -> Recipe:
    backbone = partial(PreActivationResNet, depth=20) if isinstance(scheme, NestedDepth) else _SMALL
    made = printed(setting, name, backbone, scheme=scheme, rate=_RATE)
    if not isinstance(scheme, NestedWeights):
        return made
    return replace(made, training=replace(made.training, refresh_masks=_REFRESH))


def _compression(setting: Setting) -> list[Contender]:
    # Pruned entries are estimated again in a network that was trained dense; small trainings begin with sparse levels.
    weights = NestedWeights(DENSITIES, gradients="masked" if setting.small else "straight-through")
    channels = partial(_compressed, setting, _CHANNELS, "nestednet/resnet-56")
    depth = partial(_compressed, setting, NestedDepth(DEPTHS), "nestednet/resnet-56-depth")
    return [
        Contender("weights", partial(_compressed, setting, weights, "nestednet/resnet-56-weights")),
        Contender("channels", channels),
        Contender("layers", depth),
        *levels_alone(channels, {k: f"{name} alone" for k, name in enumerate(_NAMES)}),
    ]


def _weights_keep_most(results: Results) -> Iterator[Comparison]:
    for level, share in enumerate(DENSITIES[:2]):
        what = f"{share:.4g} of the weights, chosen by magnitude over chosen by channels"
        yield Comparison(what, ("weights", level), ("channels", level))
    yield Comparison("full level, weights over alone", ("weights", 2), ("full alone", 0), _EQUAL)


_SOURCE = "Kim, Ahn and Oh 2018"

STUDIES = (
    Study(
        name="nestednet/figure-1",
        about="Core, middle and full level of one network, and networks of these sizes by themselves",
        source=_SOURCE,
        claim="Every level of one nested network is as good as a network of its size that is trained by itself "
        "(within a point).",
        contenders=_distillation,
        comparisons=_as_good,
    ),
    Study(
        name="nestednet/figure-2",
        about="Coarse classes from the core, fine ones from the full level",
        source=_SOURCE,
        claim="One network that predicts coarse classes with its core and fine ones with all of it is as good as two "
        "networks (within a point each).",
        contenders=_hierarchy,
        comparisons=_hierarchy_as_good,
        form="bars",
    ),
    Study(
        name="nestednet/compression",
        about="Deep compression: nested weights, nested channels, nested layers",
        source=_SOURCE,
        claim="Nested pruning gives, from one training, sparse levels that are better than thin ones of as many "
        "weights, and a full level as good as a dense network (within a point).",
        contenders=_compression,
        comparisons=_weights_keep_most,
    ),
    Study(
        name="nestednet/consensus",
        about="Consensus of the levels: A averages, L learns",
        source=_SOURCE,
        claim="A consensus of the levels predicts fine classes better than the full level, and than a network by "
        "itself.",
        contenders=_consensus,
        comparisons=_consensus_is_better,
        form="bars",
    ),
)
