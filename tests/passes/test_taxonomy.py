"""Heads for labels of several granularities, on every scheme."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from anytimeify import (
    AnytimeModel,
    ArgumentError,
    Budget,
    Confidence,
    HierarchicalEnsemble,
    NestedChannels,
    SandwichSampler,
    SchemeError,
    Taxonomy,
    load,
    transform,
)
from anytimeify.contract.spec import verify
from anytimeify.losses import JointLoss, TaxonomyLoss
from anytimeify.passes.rewrites.resized import resized
from tests.backbones import Keywords
from tests.passes.every_scheme import EVERY, LABELS, TAXONOMY, images, net_of

NAMES = TAXONOMY.granularities
every_scheme = pytest.mark.parametrize("name", EVERY)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def heads_of(net: AnytimeModel) -> list[str]:
    return [name for name, _ in net.named_parameters() if "taxonomy." in name]


@every_scheme
def test_every_level_predicts_every_granularity(name: str) -> None:
    net = net_of(name)
    verify(net.rewritten.program)
    outputs = net(images())
    assert net.granularities == (NAMES,) * len(net.levels)
    for level in (*outputs.levels, *outputs.members):
        assert [tuple(one.shape) for one in level] == [(3, size) for size in TAXONOMY.sizes]
    for level in net.levels:
        for granularity, joint in zip(NAMES, outputs.levels[level.index], strict=True):
            close(net(images(), level=level, granularity=granularity), joint)
            if granularity != "middle":
                close(net.extract(level, granularity=granularity)(images()), joint)
        close(net(images(), level=level), outputs.levels[level.index][0])
        everything = net(images(), level=level, granularity="all")
        assert [tuple(one.shape) for one in everything] == [(3, size) for size in TAXONOMY.sizes]


@every_scheme
def test_schemes_make_of_the_finest_what_they_make_without_a_taxonomy(name: str) -> None:
    alone, net = copy.deepcopy(net_of(name, None)), net_of(name)
    assert alone.levels == net.levels  # names and costs
    state = net.state_dict()
    for key in heads_of(net):
        del state[key]
    assert state.keys() == alone.state_dict().keys()
    alone.load_state_dict(state)
    close(alone(images()).levels[0], net(images()).levels[0][0])
    close(alone(images()).levels[-1], net(images()).levels[-1][0])
    assert "granularities" not in str(net.rewritten.program)  # the concatenation is gone


@every_scheme
def test_gradients_reach_every_head_and_nothing_is_unused(name: str) -> None:
    net = copy.deepcopy(net_of(name)).train()
    loss = net.loss(net(images()), LABELS)
    loss.backward()
    assert not [key for key, one in net.named_parameters() if one.requires_grad and one.grad is None]
    assert heads_of(net)
    for key, parameter in net.named_parameters():
        if key in heads_of(net):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, key
    terms = net.loss.terms(net(images()), LABELS)  # type: ignore[operator]  # an objective
    assert {key.partition("/")[0] for key in terms} == set(NAMES)


@every_scheme
def test_heads_stay_apart_from_level_to_level(name: str) -> None:
    """Separate parameters per level and granularity, unless the scheme shares heads or predicts with leaves."""
    net = net_of(name)
    shared = name == "shared channels" or name.startswith("ensemble")
    pattern = r"anytime\.taxonomy\." if shared else r"anytime\.(\d+)\.taxonomy\."
    found = [re.match(rf"{pattern}(middle|coarse)\.", key) for key in heads_of(net)]
    assert all(found)
    owners = {one[0] for one in found if one is not None}
    assert len(owners) == (2 if shared else 2 * len(net.levels))


@every_scheme
def test_saved_loaded_and_copied(name: str, tmp_path: Path) -> None:
    net = net_of(name)
    net.save(tmp_path / "net.anytime")
    for again in (load(tmp_path / "net.anytime"), copy.deepcopy(net)):
        assert again.taxonomy == TAXONOMY
        assert again.levels == net.levels
        pairs = zip(_pytree.tree_leaves(tuple(again(images()))), _pytree.tree_leaves(tuple(net(images()))), strict=True)
        for one, other in pairs:
            close(one, other)
        close(again.loss(again(images()), LABELS), net.loss(net(images()), LABELS))


@every_scheme
def test_streams_and_stages_serve_one_granularity(name: str) -> None:
    net = net_of(name)
    for level, prediction in net.stream(images()):
        close(prediction, net(images(), level=level))
    for level, prediction in net.staged(granularity="coarse").stream(images()):
        close(prediction, net(images(), level=level, granularity="coarse"))


SERVED = TAXONOMY.with_levels(serve=("coarse", "fine"))


@pytest.mark.parametrize("name", ["channels", "triangular", "pooled branches", "ensemble, not fused"])
def test_small_budgets_may_get_coarse_labels(name: str) -> None:
    net = net_of(name, SERVED)
    assert net.served == ("coarse", "fine")
    assert net(images(), level=0).shape == (3, 2)
    assert net.extract(Budget(macs=net.levels[0].cost.macs))(images()).shape == (3, 2)
    assert net.levels[0].cost.macs < net_of(name).levels[0].cost.macs
    assert [tuple(one.shape) for _, one in net.stream(images())] == [(3, 2), (3, 5)]
    staged = net.staged()
    assert [tuple(one.shape) for _, one in staged.stream(images())] == [(3, 2), (3, 5)]
    assert staged(images()).prediction.shape == (3, 5)
    with pytest.raises(ArgumentError, match=r"net\.staged\(granularity=...\)"):
        staged(images(), policy=Confidence(0.5))
    assert net.staged(granularity="coarse")(images(), policy=Confidence(0.5)).prediction.shape == (3, 2)


@pytest.mark.parametrize("name", ["channels", "triangular", "depth", "weights", "pooled branches"])
def test_levels_may_have_heads_of_their_own_granularity_alone(name: str) -> None:
    net = copy.deepcopy(net_of(name, TAXONOMY.with_levels(heads=(("coarse",), ("fine",)))))
    assert net.granularities == (("coarse",), ("fine",))
    assert net.served == ("coarse", "fine")
    outputs = net.train()(images())
    assert [[tuple(one.shape) for one in level] for level in outputs.levels] == [[(3, 2)], [(3, 5)]]
    terms = net.loss.terms(outputs, LABELS)  # type: ignore[operator]  # an objective
    assert {"coarse/level0/cross_entropy", "fine/level1/cross_entropy"} <= terms.keys()
    net.loss(outputs, LABELS).backward()
    assert not [key for key, one in net.named_parameters() if one.requires_grad and one.grad is None]
    assert all(key.startswith("anytime.0.taxonomy.coarse.") for key in heads_of(net))
    assert "anytime.0.head.weight" not in net.state_dict()  # a head that no level has is not there
    with pytest.raises(ArgumentError, match=r"level 1 .* does not predict coarse; it predicts fine"):
        net(images(), level=1, granularity="coarse")
    with pytest.raises(ArgumentError, match="does not predict"):
        net.staged([0, 1], granularity="fine")


def test_ensembles_choose_granularities_by_level_too() -> None:
    chosen = TAXONOMY.with_levels(heads=(NAMES, ("middle",), ("coarse",)), serve=("coarse", "middle", "coarse"))
    net = net_of("ensemble", chosen)
    assert [[one.shape[1] for one in level] for level in net(images()).levels] == [[5, 3, 2], [3], [2]]
    for level in net.levels:
        close(net(images(), level=level), net.extract(level)(images()))
    assert [one.shape[1] for _, one in net.stream(images())] == [2, 3, 2]


def test_as_many_heads_as_in_the_paper() -> None:
    """Six levels: 12 heads for two granularities, 24 for four (Lee and Shin 2018)."""
    scheme = NestedChannels(tuple(k / 6 for k in range(1, 7)), connectivity="triangular")
    two = Taxonomy.from_parents([c // 5 for c in range(100)])
    four = Taxonomy.from_parents(*([min(c, below - 1) for c in range(n)] for n, below in ((20, 18), (18, 14), (14, 8))))
    for taxonomy, count in ((two, 12), (four, 24)):
        backbone = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, taxonomy.sizes[0]))
        net = transform(backbone, scheme, torch.randn(3, 4), taxonomy=taxonomy)
        outputs = net(torch.randn(3, 4))
        assert sum(map(len, outputs.levels)) == count
        assert len(net.loss.terms(outputs, LABELS)) == count  # type: ignore[operator]  # an objective


def test_heads_are_drawn_as_the_layer_that_they_are_made_after() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 200))
    with torch.no_grad():  # trained values, not fresh ones: rows of other lengths
        backbone.get_parameter("3.weight").mul_(torch.linspace(10, 100, 200)[:, None])
    taxonomy = Taxonomy.from_parents([c // 4 for c in range(200)])
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(2, 64), taxonomy=taxonomy)
    weight = dict(net.named_parameters())["anytime.1.taxonomy.coarse.3.weight"]
    assert weight.shape == (50, 256)
    assert float(weight.detach().std()) == pytest.approx(1 / (3 * 256) ** 0.5, rel=0.05)  # torch's own law
    assert resized(weight, (50, 256)).shape == weight.shape


class Stubborn(nn.Linear):
    """A layer that is initialised once and never again."""

    def __init__(self) -> None:
        self.done = False
        super().__init__(8, 5)
        self.done = True

    def reset_parameters(self) -> None:
        if self.done:
            raise RuntimeError("once is enough")
        super().reset_parameters()


def test_values_that_are_there_do_where_none_can_be_drawn() -> None:
    head = Stubborn()
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), head)
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(2, 4), taxonomy=TAXONOMY)
    weight = dict(net.named_parameters())["anytime.1.taxonomy.coarse.2.weight"]
    assert set(weight.flatten().tolist()) <= set(head.weight.flatten().tolist())


class Tail(nn.Module):
    """Something between the layer that makes the classes and the prediction, or in place of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head, self.other, self.drop = nn.Linear(6, 5), nn.Linear(6, 5), nn.Dropout(0.3)
        self.conv, self.flat = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 20, 1)
        self.cosine = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.two, self.three = nn.Linear(6, 2), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("prior", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.body(x)).relu()
        pooled = features.mean((2, 3))
        kinds: dict[str, Callable[[], Tensor]] = {
            "dropout": lambda: self.drop(self.head(pooled)),
            "log softmax": lambda: self.head(pooled).log_softmax(1),
            "two heads": lambda: (self.head(pooled) + self.other(pooled)) / 2,
            "scaled": lambda: self.head(pooled) * self.scale.exp(),
            "weight norm": lambda: self.cosine(pooled),
            "pooled maps": lambda: self.conv(features).relu().mean((2, 3)),
            "view of maps": lambda: self.conv(nn.functional.adaptive_avg_pool2d(features, 1)).view(x.shape[0], 5),
            "pixels": lambda: nn.functional.interpolate(self.conv(features), scale_factor=2.0, mode="bilinear"),
            "product": lambda: pooled @ self.head.weight.t(),
            "prior": lambda: self.head(pooled) - self.prior,
            "no rule": lambda: torch.logcumsumexp(self.head(pooled), 1),
            "shuffled": lambda: nn.functional.pixel_shuffle(self.flat(features), 2),
            "no layer": lambda: x.flatten(1)[:, :5] * self.scale,
            "several axes": lambda: torch.cat([self.two(pooled), self.three(pooled)], 1),
            "one number": lambda: self.head(pooled).sum(1),
        }
        return kinds[self.kind]()


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        *((kind, NestedChannels((0.5, 1.0))) for kind in ("dropout", "log softmax", "scaled", "product", "pixels")),
        *((kind, NestedChannels((0.5, 1.0))) for kind in ("view of maps", "shuffled")),
        *((kind, HierarchicalEnsemble(cuts=("input",))) for kind in ("two heads", "weight norm", "pooled maps")),
    ],
)
def test_whatever_lies_between_the_layer_and_the_prediction(kind: str, scheme: Any) -> None:
    torch.manual_seed(0)
    net = transform(Tail(kind), scheme, images(), taxonomy=TAXONOMY)
    outputs = net.train()(images())
    shape = outputs.levels[0][0].shape
    assert [one.shape for one in outputs.levels[0]] == [(3, size, *shape[2:]) for size in TAXONOMY.sizes]
    target = LABELS.view(3, *(1 for _ in shape[2:])).expand(3, *shape[2:])
    net.loss(outputs, target).backward()
    assert not [key for key, one in net.named_parameters() if one.requires_grad and one.grad is None]
    if kind == "log softmax":
        torch.testing.assert_close(outputs.levels[0][2].exp().sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prior", "buffer prior has an entry for each class"),
        ("no rule", "logcumsumexp.* has no rule that says what becomes of its axes"),
        ("no layer", "no layer with parameters makes the classes of the prediction; they come from slice"),
        ("several axes", "are made of several axes"),
        ("one number", r"has the shape \[s\d+\]; expected \(samples, classes, ...\)"),
    ],
)
def test_predictions_that_no_coarser_head_can_follow(kind: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        transform(Tail(kind), NestedChannels((0.5, 1.0)), images(), taxonomy=TAXONOMY)


def test_what_is_refused() -> None:
    def made(taxonomy: Any) -> AnytimeModel:
        backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
        return transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(2, 4), taxonomy=taxonomy)

    with pytest.raises(SchemeError, match=r"has 5 classes, and the finest granularity, fine, has 4"):
        made(Taxonomy.from_parents([0, 0, 1, 1]))
    with pytest.raises(SchemeError, match="heads is for 1 levels, and the model has 2"):
        made(TAXONOMY.with_levels(heads=(("fine",),)))
    with pytest.raises(SchemeError, match="serve is for 3 levels, and the model has 2"):
        made(TAXONOMY.with_levels(serve=("fine",) * 3))
    with pytest.raises(SchemeError, match=r"level 1 \(width 1\) equals the backbone, which predicts fine"):
        made(TAXONOMY.with_levels(heads=(("fine",), ("coarse",))))
    with pytest.raises(SchemeError, match="expected a Taxonomy"):
        made([0, 0, 1, 1, 1])
    net = made(TAXONOMY)
    with pytest.raises(ArgumentError, match="there is no granularity 'species'"):
        net(torch.randn(2, 4), level=0, granularity="species")
    with pytest.raises(ArgumentError, match="granularity is given without level"):
        net(torch.randn(2, 4), granularity="coarse")
    with pytest.raises(ArgumentError, match="this model has no taxonomy"):
        made(None).extract(0, granularity="coarse")
    with pytest.raises(SchemeError, match="without a taxonomy"):
        SandwichSampler(net_of("shared channels"))


def test_another_loss_learns_the_taxonomy_of_the_model() -> None:
    net = copy.deepcopy(net_of("channels"))
    net.loss = TaxonomyLoss(JointLoss(reduction="mean"), weights=(1.0, 0.5, 0.5))
    terms = net.loss.terms(net(images()), LABELS)
    assert len(terms) == 6
    net.loss = JointLoss()  # fits no tuple of predictions, and nobody says it does
    with pytest.raises(ArgumentError, match=r"of several granularities are for TaxonomyLoss"):
        net.loss(net(images()), LABELS)


def test_structured_inputs_and_results() -> None:
    taxonomy = Taxonomy.from_parents([0, 0, 1])
    given = {"x": torch.randn(2, 4), "scale": torch.tensor(2.0)}
    net = transform(Keywords(), NestedChannels((0.5, 1.0)), given, taxonomy=taxonomy).eval()
    assert [[one.shape[1] for one in level] for level in net(**given).levels] == [[3, 2], [3, 2]]
    assert net.extract(0, granularity="coarse")(**given).shape == (2, 2)


def test_the_report_lists_the_heads() -> None:
    net = net_of("channels", SERVED)
    rows = net.report().heads
    assert [(row.level, row.granularity, row.classes, row.served) for row in rows] == [
        (level, name, size, name == net.served[level])
        for level in range(2)
        for name, size in zip(NAMES, TAXONOMY.sizes, strict=True)
    ]
    assert [row.macs for row in rows if row.served] == [level.cost.macs for level in net.levels]
    assert "served" in str(net.report())
    assert net_of("channels", None).report().heads == ()


def test_the_program_of_a_small_network() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5))
    taxonomy = Taxonomy.from_parents([0, 0, 1, 1, 1])
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(2, 4), taxonomy=taxonomy)
    *_, last = str(net.rewritten.program).splitlines()
    assert last == "return level0_m2, m2, level0_coarse_m2, coarse_m2"
    assert heads_of(net) == [
        f"anytime.{level}.taxonomy.coarse.2.{name}" for level in (1, 0) for name in ("weight", "bias")
    ]


class Shares(nn.Module):
    """Predictions that are divided by their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = x.mean((2, 3))
        scores: Tensor = self.head(features).exp()
        total: Tensor = self.head(features).exp().sum(1, keepdim=True)
        return scores / total


def test_every_granularity_is_divided_by_its_own_sum() -> None:
    net = transform(Shares(), "nested-weights{densities=0.5,1}", images(), taxonomy=TAXONOMY)
    for prediction in net(images()).levels[0]:
        torch.testing.assert_close(prediction.sum(1), torch.ones(3))
