"""I-ResNeXt and IS-ResNeXt: the levels that the compiler makes of plain networks against the paper's tables."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.compiler import transform
from anytimeify.losses import JointLoss
from anytimeify.papers import recipe
from anytimeify.papers.anytime import large, levels, small
from anytimeify.papers.networks import ResNeXt
from anytimeify.passes.options import Options
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train import OneAfterTheOther, Together
from tests.papers.branches import ENTRIES, Nested, blank

NETWORKS = [name for name in ENTRIES if name.startswith("anytime/")]
# Multiply-accumulates of every level, in millions, as printed.
MACS = {
    "anytime/i-resnext-29": (7.82, 13.86, 19.91, 25.95, 32.00, 38.05, 44.09, 50.14),
    "anytime/is-resnext-47-cifar": (13.22, 28.41, 45.57, 64.69, 85.77, 108.83),
}
# All that levels read: convolutions, every level's norms and heads.
TOTALS = {"anytime/i-resnext-29": 390_608, "anytime/is-resnext-47-cifar": 757_980}


@cache
def made(name: str) -> Nested:
    return Nested.of_entry(ENTRIES[name])


@cache
def _net(chunks: int) -> AnytimeModel:
    torch.manual_seed(0)
    if chunks == 1:
        backbone, scheme = ResNeXt(5, depth=11, width=8, branches=4, branch_width=2), slices(4)
    else:
        backbone, scheme = (
            ResNeXt(5, depth=11, width=12, branches=2 * chunks, branch_width=2, chunks=chunks),
            chunked(3),
        )
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]  # batch norms have statistics
    return transform(backbone.eval(), scheme, torch.randn(2, 3, 16, 16))


def slices(count: int) -> NestedChannels:
    return NestedChannels(levels(count), where="inner", norms="every")


def chunked(count: int) -> NestedChannels:
    return NestedChannels(levels(count), connectivity="triangular", norms="every")


def net(chunks: int) -> AnytimeModel:
    """Three blocks and few pixels, verified: four branches, or three chunks of two branches each."""
    return copy.deepcopy(_net(chunks))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MACS)
def test_the_tables_of_the_paper(name: str) -> None:
    network = made(name)
    assert tuple(round(macs / 1e6, 2) for macs in network.macs) == MACS[name]
    assert network.total == TOTALS[name]


def test_convolutions_norms_and_heads() -> None:
    """Each level of the branches has its own norms, the first one too, which reads the same at every level."""
    network, counts = made("anytime/i-resnext-29"), {"conv": 0, "bn": 0, "head": 0}
    for name in network.tensors:
        if network.program.is_parameter(name):
            path = name.removeprefix(".".join(name.split(".")[:2]) + ".") if name.startswith("anytime.") else name
            kind = "head" if not path.startswith("layer") and "conv" not in path else path.split(".")[-2][:-1]
            counts[kind] += network.program.tensors[name].numel()
    assert counts == {"conv": 332_352, "bn": 33_600, "head": 24_656}


def test_convolutions_of_chunks() -> None:
    """Those that a level reads: parameters without its norms and its head."""
    network = made("anytime/is-resnext-47-cifar")
    norms = [2 * level * (5 * (16 + 8 + 8) * 7 + 64) for level in range(1, 7)]
    heads = [10 * (64 * level + 1) for level in range(1, 7)]
    convolutions = [all_ - bn - fc for all_, bn, fc in zip(network.params, norms, heads, strict=True)]
    assert convolutions == [87_792, 189_024, 303_696, 431_808, 573_360, 728_352]


def test_the_last_norm_alone_is_each_levels_own() -> None:
    """It belongs to the heads; all other norms see the same values whatever the level is."""
    own = {
        name.split(".", 2)[2] for name in made("anytime/is-resnext-47-cifar").tensors if name.startswith("anytime.0.")
    }
    assert {name.rpartition(".")[0] for name in own} == {"bn", "fc"}


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("i-resnext-65", 114.6e6),
        ("is-resnext-62-imagenet", 1.66e9),
        ("is-resnext-50-cub", 1.74e9),
    ],
)
@pytest.mark.slow
def test_the_large_networks(name: str, macs: float) -> None:
    assert made(f"anytime/{name}").macs[-1] == pytest.approx(macs, rel=0.003)


@pytest.mark.slow
def test_as_many_classes_as_the_paper() -> None:
    entry = replace(ENTRIES["anytime/is-resnext-47-cifar"], num_classes=100)
    assert Nested.of_entry(entry).total == 879_480


@pytest.mark.parametrize(
    ("branch_width", "branches", "millions"),
    [
        pytest.param(4, 12, 82.3, id="4x12", marks=pytest.mark.slow),
        pytest.param(4, 6, 42.5, id="4x6", marks=pytest.mark.slow),
        pytest.param(6, 6, 72.3, id="6x6", marks=pytest.mark.slow),
        pytest.param(16, 6, 321, id="16x6", marks=pytest.mark.slow),
        pytest.param(4, 18, 122, id="4x18", marks=pytest.mark.slow),
    ],
)
def test_other_branches_of_chunks(branch_width: int, branches: int, millions: float) -> None:
    entry = ENTRIES["anytime/is-resnext-47-cifar"]
    backbone = partial(small, branch_width=branch_width, branches=branches)
    assert Nested.of_entry(replace(entry, backbone=backbone)).macs[-1] / 1e6 == pytest.approx(millions, abs=0.3)


@pytest.mark.slow
def test_the_last_stage_as_printed() -> None:
    """W, 2W, 4W, 4W, as the text has it before it breaks off."""
    entry = ENTRIES["anytime/is-resnext-62-imagenet"]
    printed = replace(entry, backbone=partial(large, multiples=(1, 2, 4, 4)))
    assert Nested.of_entry(printed).macs[-1] == 1_404_564_480


def test_a_level_of_branches_is_a_network_with_fewer_of_them() -> None:
    model, x = net(1), images()
    for level in range(4):
        thin = ResNeXt(5, depth=11, width=8, branches=level + 1, branch_width=2).eval()
        thin.load_state_dict(model.extract(level, dense=True).state_dict())
        torch.testing.assert_close(model(x).levels[level], thin(x), rtol=1e-4, atol=1e-5)


def test_a_level_of_chunks_is_a_network_of_fewer_of_them() -> None:
    model, x = net(3), images()
    for level in range(3):
        parts = level + 1
        thin = ResNeXt(5, depth=11, width=4 * parts, branches=2 * parts, branch_width=2, chunks=parts).eval()
        thin.load_state_dict(model.extract(level, dense=True).state_dict())
        torch.testing.assert_close(model(x).levels[level], thin(x), rtol=1e-4, atol=1e-5)


def test_one_level_is_the_plain_network() -> None:
    x, target = images(), torch.arange(4)
    for scheme in (slices(1), chunked(1)):
        torch.manual_seed(0)
        backbone = ResNeXt(5, depth=11, width=8, branches=4, branch_width=2)
        model = transform(backbone, scheme, x, loss=JointLoss())
        (only,) = model.eval()(x).levels
        torch.testing.assert_close(only, backbone.eval()(x))
        torch.testing.assert_close(model.loss(model(x), target), nn.functional.cross_entropy(backbone(x), target))
        assert [name for name, _ in model.named_parameters()] == [name for name, _ in backbone.named_parameters()]


def test_later_chunks_change_nothing_before_them() -> None:
    """Whatever any weight of a later level is, earlier levels are the same to the bit."""
    model, x = net(3), images()
    before = [prediction.detach() for prediction in model(x).levels]
    for level in (0, 1):
        model.zero_grad()
        model(x).levels[level].sum().backward()
        changed = copy.deepcopy(model)
        for name, parameter in changed.named_parameters():
            gradient = model.get_parameter(name).grad
            unread = torch.ones_like(parameter, dtype=torch.bool) if gradient is None else gradient == 0
            if name.startswith("anytime.0.") or (level and name.startswith("anytime.1.")):
                unread = torch.zeros_like(unread)
            parameter.data[unread & chunk_behind(name, parameter, level)] += 1
        after = changed(x).levels
        assert all(torch.equal(after[lower], before[lower]) for lower in range(level + 1))
        assert not torch.allclose(after[2], before[2])


def chunk_behind(name: str, parameter: Tensor, level: int) -> Tensor:
    """The entries of a tensor of the backbone in rows of later chunks than a level has; of three."""
    rows = torch.arange(len(parameter)) >= len(parameter) * (level + 1) // 3
    if name.startswith(("anytime.", "fc.", "bn.")):
        return torch.ones_like(parameter, dtype=torch.bool)
    return rows.reshape(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter)


def test_what_is_masked_has_no_gradient_and_is_never_read() -> None:
    model, x = net(3), images()
    model.loss(model(x), torch.arange(4)).backward()
    weight = model.get_parameter("layer2.0.conv1.weight")
    later = torch.arange(24)[None, :] // 8 > torch.arange(24)[:, None] // 8  # columns of chunks behind the rows'
    assert weight.grad is not None
    assert not bool(weight.grad[:, :, 0, 0][later].any())
    # what decay and momentum make of these entries has no effect either
    ENTRIES["anytime/is-resnext-47-cifar"].training.optimiser.build(model.parameters()).step()
    before = model(x).levels
    weight.data[later.nonzero(as_tuple=True)] += 1
    assert all(torch.equal(one, other) for one, other in zip(model(x).levels, before, strict=True))


@pytest.mark.parametrize("chunks", [1, 3])
def test_one_pass_learns_what_a_pass_for_every_level_learns(chunks: int) -> None:
    gradients = []
    for order in (Together(), OneAfterTheOther(update="accumulate")):
        model = net(chunks)
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        order.step(model, images(), torch.arange(4), optimizer)
        gradients.append({name: one.detach() - before[name] for name, one in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], rtol=1e-3, atol=1e-5)
    assert net(chunks).resumable == (chunks > 1)


def test_zeros_are_added_to_every_chunk() -> None:
    x = torch.randn(2, 6, 4, 4)
    backbone = ResNeXt(5, depth=11, width=6, branches=3, branch_width=2, chunks=3)
    pooled = nn.functional.avg_pool2d(x, 2)
    zeros = torch.zeros(2, 2, 2, 2)
    for name in ("weight", "bias"):  # the path gives nothing
        nn.init.zeros_(backbone.get_parameter(f"layer2.0.bn3.{name}"))
    parts = [part for start in (0, 2, 4) for part in (pooled[:, start : start + 2], zeros)]
    torch.testing.assert_close(backbone.eval().get_submodule("layer2.0")(x), torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 30}, r"depth=30: these networks have 9n \+ 2"),
        ({"depth": 30, "multiples": (1, 2, 4, 8)}, r"depth=30: these networks have 12n \+ 2"),
        ({"chunks": 3}, "chunks=3: expected a divisor of width=64 and of branches=8"),
        ({"stem": "none"}, "stem='none'"),
        ({"blocks": 10}, "blocks=10: expected 1 to 9, which depth=29 has"),
    ],
)
def test_networks_that_there_are_not(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ResNeXt(5, **options)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(("options", "width"), [({}, 1280), ({"depth": 50, "width": 192, "chunks": 6}, 1536)])
def test_sizes_of_the_larger_backbones(options: dict[str, int], width: int) -> None:
    seen: list[torch.Size] = []
    with torch.device("meta"):
        backbone = large(10, **options).eval()  # type: ignore[arg-type]  # whole numbers alone
        backbone.get_submodule("layer4").register_forward_hook(lambda _module, _in, output: seen.append(output.shape))
        backbone(torch.randn(1, 3, 224, 224))
    assert seen == [(1, width, 7, 7)]
    assert backbone.get_parameter("layer1.0.conv2.weight").shape[1] == 16  # the width of a branch


def test_levels_are_equal_steps() -> None:
    assert levels(4) == (0.25, 0.5, 0.75, 1.0)
    schemes = [ENTRIES[name].scheme for name in NETWORKS if "thin" not in name]
    assert schemes == [slices(8), slices(8), chunked(6), chunked(5), chunked(6), chunked(6), chunked(6)]


@pytest.mark.parametrize("branches", [1, 5])
def test_thin_networks_cost_what_the_levels_do(branches: int) -> None:
    """Trained solely: plain networks of fewer branches."""
    name = f"anytime/resnext-29-thin-{branches}"
    assert made(name).macs == made("anytime/i-resnext-29").macs[branches - 1 : branches]
    assert made(name).params == (ENTRIES[name].params(),)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("anytime/is-resnext-47-cifar-hierarchy", 12, marks=pytest.mark.slow),
        pytest.param("anytime/is-resnext-50-cub-hierarchy", 24, marks=pytest.mark.slow),
    ],
)
def test_heads_of_labels_of_several_granularities(name: str, count: int) -> None:
    """One for each level and granularity; the trunk is that of the network without them."""
    entry = ENTRIES[name]
    taxonomy = entry.recipe().taxonomy
    assert taxonomy is not None
    (backbone,) = blank(partial(entry.backbone), entry.num_classes)
    captured = capture(backbone, (torch.zeros(2, 3, 32, 32),))
    scheme = entry.scheme
    assert isinstance(scheme, NestedChannels)
    rewritten = Options(taxonomy).apply(scheme, captured, analyse(captured.program))
    heads = [
        tuple(tensor.shape)
        for name, tensor in rewritten.program.tensors.items()
        if "fc" in name and name.endswith("weight")
    ]
    assert len(heads) == count
    assert Counter(shape[0] for shape in heads) == dict.fromkeys(taxonomy.sizes, count // len(taxonomy.sizes))


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "rates"),
    [
        ("i-resnext-29", 64, 300, {149: 0.1, 150: 0.01, 225: 0.001}),
        ("i-resnext-65", 64, 300, {149: 0.1, 150: 0.01, 225: 0.001}),
        ("is-resnext-47-cifar", 64, 300, {149: 0.1, 150: 0.01, 225: 0.001}),
        ("is-resnext-62-imagenet", 96, 90, {29: 0.1, 30: 0.01, 60: 0.001}),
        ("is-resnext-50-cub", 64, 150, {74: 0.1, 75: 0.01, 112: 0.01, 113: 0.001}),
    ],
)
def test_training_of_the_paper(name: str, batch: int, epochs: int, rates: dict[int, float]) -> None:
    entry = ENTRIES[f"anytime/{name}"]
    training = entry.training
    assert (training.batch, training.epochs) == (batch, epochs)
    assert (training.optimiser.weight_decay, training.optimiser.nesterov) == (1e-4, True)
    assert {epoch: training.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)
    assert training.order == (OneAfterTheOther(update="accumulate") if name.startswith("i-") else Together())
    loss = entry.loss()
    assert isinstance(loss, JointLoss)
    assert (loss.weights, loss.reduction) == (None, "sum")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_verified(name: str) -> None:
    """The whole transform with weights, at the size of the paper's images."""
    built = recipe(name).build()
    if ENTRIES[name].taxonomy is None:
        assert tuple(level.cost.macs for level in built.levels) == made(name).macs
