"""NestedNet: the levels that the compiler makes of plain networks against the paper's table and its demo."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.cost import cost
from anytimeify.compiler import transform
from anytimeify.losses import JointLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.papers import recipe
from anytimeify.papers.nestednet import CONSENSUS, DEMO_WEIGHTS, WIDTHS, hierarchy, subtree
from anytimeify.papers.networks import CifarResNet, PreActivationResNet
from anytimeify.papers.networks.preactivation import PaddedShortcut
from anytimeify.papers.taxonomies import cifar100
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_weights import NestedWeights
from anytimeify.runtime.model import AnytimeModel
from anytimeify.taxonomy import Taxonomy
from anytimeify.train import OneAfterTheOther, Together
from tests.papers.branches import ENTRIES, Nested

NETWORKS = [name for name in ENTRIES if name.startswith("nestednet/")]


@cache
def made(name: str) -> Nested:
    return Nested.of_entry(ENTRIES[name])


@cache
def _small(padding: str) -> AnytimeModel:
    torch.manual_seed(0)
    backbone = PreActivationResNet(10, depth=8, widening=4, padding=padding).eval()  # type: ignore[arg-type]  # a parameter of the tests
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]  # batch norms have statistics
    return transform(backbone, NestedChannels(WIDTHS, where=("layer*",)), torch.randn(2, 3, 16, 16))


def small(padding: str = "centre") -> AnytimeModel:
    """Eight layers and few pixels, verified."""
    return copy.deepcopy(_small(padding))


def by_hand(stem: int, widths: tuple[int, ...], repeats: int, classes: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of 6n + 2 layers for 32x32 images, norms first."""
    params, macs, inputs = 27 * stem, 27 * stem * 32**2, stem
    for stage, width in enumerate(widths):
        for _ in range(repeats):
            weights = 9 * width * (inputs + width)
            params += weights + 2 * (inputs + width)
            macs += weights * (32 >> stage) ** 2
            inputs = width
    return params + 2 * inputs + (inputs + 1) * classes, macs + inputs * classes


def test_the_table_of_the_paper() -> None:
    network = made("nestednet/wrn-32-4")
    assert network.params == (470_004, 1_856_436, 7_380_276)
    assert network.macs == (68_868_352, 269_414_912, 1_066_869_760)  # 68.87, 269.41 and 1066.87 million
    assert network.total == 7_406_396
    assert ENTRIES["nestednet/wrn-32-4"].params() == network.params[-1]


def test_convolutions_norms_and_classifiers_of_the_table() -> None:
    kinds: list[Counter[str]] = []
    for level in range(3):
        counts: Counter[str] = Counter()
        for name, elements in made("nestednet/wrn-32-4").read(level).items():
            layer = name.split(".")[-2]
            counts["classifier" if layer == "fc" else layer.rstrip("12")] += elements
        kinds.append(counts)
    assert [(one["conv"], one["bn"], one["classifier"]) for one in kinds] == [
        (461_232, 2_272, 6_500),
        (1_839_024, 4_512, 12_900),
        (7_345_584, 8_992, 25_700),
    ]


def test_the_core_is_as_large_as_a_plain_resnet() -> None:
    plain = sum(parameter.numel() for parameter in CifarResNet(100, depth=32).parameters())
    assert made("nestednet/wrn-32-4").params[0] == plain == 470_004


@pytest.mark.parametrize(
    ("name", "repeats", "widening"),
    [
        pytest.param("wrn-32-4", 5, 4),
        pytest.param("wrn-14-4", 2, 4),
        pytest.param("wrn-14-8", 2, 8, marks=pytest.mark.slow),
        pytest.param("resnet-56", 9, 1, marks=pytest.mark.slow),
    ],
)
def test_levels_are_thin_networks_by_size(name: str, repeats: int, widening: int) -> None:
    """The others are not in print: counted by their layers."""
    network = made(f"nestednet/{name}")
    widths = [tuple(int(width * 16 * 2**stage * widening) for stage in range(3)) for width in WIDTHS]
    stems = [int(16 * width) if widening == 1 else 16 for width in WIDTHS]
    expected = [by_hand(stem, width, repeats, 100) for stem, width in zip(stems, widths, strict=True)]
    assert list(zip(network.params, network.macs, strict=True)) == expected


def test_the_table_of_imagenet_sizes() -> None:
    """Every convolution of ResNet-18 with 1/4 and 1/2 of its channels, the stem too."""
    network = made("nestednet/resnet-18-imagenet")
    for level, width in enumerate(WIDTHS):
        read = network.read(level)
        assert read["conv1.weight"] == 64 * width * 3 * 49
        assert read["layer4.1.conv2.weight"] == (512 * width) ** 2 * 9
        assert sum(count for name, count in read.items() if "fc" in name) == 100 * (512 * width + 1)


def test_what_levels_share() -> None:
    """Stem and first norm; every other norm and the classifier are each level's own."""
    name = "nestednet/wrn-32-4"
    own = {
        tensor.removeprefix(f"anytime.{level}.")
        for tensor in made(name).tensors
        for level in (0, 1)
        if tensor.startswith(f"anytime.{level}.")
    }
    layers = {tensor.rpartition(".")[0] for tensor in made(name).tensors if not tensor.startswith("anytime.")}
    shared = {layer for layer in layers if layer not in {one.rpartition(".")[0] for one in own}}
    assert {layer for layer in shared if "conv" not in layer} == {"layer1.0.bn1"}


@pytest.mark.parametrize("padding", ["centre", "end"])
def test_a_level_is_a_network_of_its_own(padding: str) -> None:
    """The network that is built that thin, with what the level reads copied in."""
    x = torch.randn(3, 3, 16, 16)
    net = small(padding)
    for level, widening in enumerate((1, 2, 4)):
        thin = PreActivationResNet(10, depth=8, widening=widening, padding=padding).eval()  # type: ignore[arg-type]  # a parameter of the test
        thin.load_state_dict(net.extract(level).state_dict())
        torch.testing.assert_close(net(x).levels[level], thin(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x, level=level), thin(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["centre", "end"])
def test_weights_are_nested(padding: str) -> None:
    """What a level alone learns leaves all that it does not read without a gradient, and levels read ever more."""
    net = small(padding)
    before = {name: torch.zeros(()).bool() for name in read_by(net, 1.0)}
    for level, width in enumerate(WIDTHS):
        net.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(4, 3, 16, 16), level=level), torch.arange(4)).backward()
        for name, reads in read_by(net, width).items():
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            assert int(reads.sum()) == net.extract(level).get_parameter(name).numel()
            assert not bool(gradient[~reads].any())
            assert bool(gradient[reads].any())
            assert not bool((before[name] & ~reads).any())
            before[name] = reads


def read_by(net: AnytimeModel, width: float) -> dict[str, Tensor]:
    """The entries of every convolution that a width reads."""
    axes, found = net.axes, {}
    widths = axes.widths(width, where=("layer*",))
    for node, dims in axes.dims.items():
        if node.op == "get_attr" and "conv" in str(node.target):
            rows, columns = (torch.from_numpy(axes.indices(dim, widths)) for dim in dims[:2])
            found[str(node.target)] = torch.zeros_like(net.get_parameter(str(node.target)), dtype=torch.bool)
            found[str(node.target)][rows[:, None], columns] = True
    return found


def test_other_levels_learn_nothing_of_their_own() -> None:
    net = small()
    net(torch.randn(2, 3, 16, 16), level=1).sum().backward()
    moved = {name for name, one in net.named_parameters() if one.grad is not None and bool((one.grad != 0).any())}
    assert any(name.startswith("anytime.1.") for name in moved)
    assert not any(name.startswith("anytime.0.") or name in ("fc.weight", "bn.weight") for name in moved)


def test_the_shortcut_puts_zeros_where_it_is_told() -> None:
    x = torch.randn(2, 3, 4, 4)
    pooled = nn.functional.avg_pool2d(x, 2)
    zeros = torch.zeros(2, 2, 2, 2)
    torch.testing.assert_close(PaddedShortcut(3, 7, 2, "centre")(x), torch.cat([zeros, pooled, zeros], 1))
    torch.testing.assert_close(PaddedShortcut(3, 7, 2, "end")(x), torch.cat([pooled, zeros, zeros], 1))
    torch.testing.assert_close(PaddedShortcut(3, 3, 1, "centre")(x), x)
    assert PaddedShortcut(16, 64, 1, "centre").zeros[-2:] == (24, 24)


def test_features_of_a_level_are_those_of_the_full_network() -> None:
    """The zeros of the core are some of the full network's, its channels stand where they stand there."""
    net = small()
    (node,) = (node for node in net.rewritten.program.graph.nodes if node.target == "layer2.0.conv2.weight")
    level = net.axes.widths(0.25, where=("layer*",))
    (dims,) = (dims for read, dims in net.axes.dims.items() if read.target == node.target)
    kept = net.axes.indices(dims[0], level).tolist()
    # 128 channels: 32 zeros, of the stage before 24 zeros, the stem's 16 and 24 zeros, then 32 zeros
    assert kept == [*range(8), *range(56, 72), *range(96, 104)]


def test_weights_are_drawn_for_inputs_and_outputs() -> None:
    model = PreActivationResNet(10, depth=8, widening=4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            limit = (6 / (9 * (module.in_channels + module.out_channels))) ** 0.5
            assert float(module.weight.detach().abs().max()) == pytest.approx(limit, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.detach().min()) == 1
    assert float(model.fc.bias.detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [({"depth": 30}, r"depth=30: these networks have 6n \+ 2"), ({"padding": "left"}, "padding='left'")],
)
def test_networks_that_there_are_not(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PreActivationResNet(10, **options)  # type: ignore[arg-type]  # what is tested


def test_objectives() -> None:
    """The mean over levels; the demo's weights are an option. One level at a time, each has the whole of its own."""
    for name in NETWORKS:
        loss = ENTRIES[name].loss()
        assert isinstance(loss, JointLoss)
        by_level = "resnet-18" in name
        assert loss.reduction == ("sum" if by_level else "mean")
        assert isinstance(ENTRIES[name].training.order, OneAfterTheOther if by_level else Together)
    assert sum(DEMO_WEIGHTS) == pytest.approx(1.0)
    net = small()
    net.loss = JointLoss(DEMO_WEIGHTS)
    net.loss(net(torch.randn(2, 3, 16, 16)), torch.tensor([0, 1])).backward()


def test_the_order_of_imagenet_differs_from_all_levels_together() -> None:
    x, target = torch.randn(4, 3, 16, 16), torch.arange(4)
    weights = []
    for name in ("nestednet/wrn-14-4", "nestednet/resnet-18-imagenet"):
        net = small()
        training = ENTRIES[name].training
        training.order.step(net.train(), x, target, training.optimiser.build(net.parameters()))
        weights.append(net.get_parameter("layer1.0.conv1.weight").detach())
    assert not torch.allclose(weights[0], weights[1])


def test_training_of_the_paper() -> None:
    cifar, imagenet = (ENTRIES[f"nestednet/{name}"].training for name in ("wrn-32-4", "resnet-18-imagenet"))
    assert (cifar.batch, cifar.optimiser.weight_decay, cifar.optimiser.nesterov) == (128, 2e-4, True)
    assert (imagenet.batch, imagenet.optimiser.weight_decay, imagenet.optimiser.nesterov) == (256, 1e-4, True)
    # steps of the schedule, in samples
    assert [round(at * 50_000 / 128) for at in cifar.schedule.milestones] == [40_000, 60_000]
    assert [at * 130_000 / 256 for at in imagenet.schedule.milestones] == pytest.approx([15e3, 30e3, 45e3], rel=0.01)
    assert CONSENSUS.schedule is not None
    assert [at * 50_000 / 128 for at in CONSENSUS.schedule.milestones] == pytest.approx([20e3, 30e3, 40e3])
    rates = {0: 0.1, 102: 0.1, 103: 0.01, 154: 0.001, 204: 0.001}
    assert {epoch: cifar.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)
    assert CONSENSUS.optimiser is not None
    assert (CONSENSUS.optimiser.momentum, CONSENSUS.epochs * 50_000 // 128) == (0.0, 50_000)
    phases = {name: ENTRIES[name].training.phases for name in NETWORKS if name.endswith("-l")}
    assert set(phases.values()) == {(CONSENSUS,)}
    assert len(phases) == 3


def test_networks_of_imagenet_start_as_the_others_do() -> None:
    (backbone,) = recipe("nestednet/resnet-18-imagenet").backbones
    weight = backbone.get_parameter("layer1.0.conv1.weight").detach()
    assert float(weight.abs().max()) == pytest.approx((6 / (9 * 128)) ** 0.5, rel=0.01)


def test_deep_compression_nests_all_layers() -> None:
    """A mask keeps the share of a weight that a level of channels has; or the stem and the classifier lose channels
    too."""
    weights, channels = (ENTRIES[f"nestednet/wrn-32-4-{kind}"].scheme for kind in ("weights", "channels"))
    assert weights == NestedWeights(tuple(width**2 for width in WIDTHS))
    assert isinstance(weights, NestedWeights)
    assert weights.ends == "masked"
    assert channels == NestedChannels(WIDTHS)
    assert made("nestednet/wrn-32-4-channels").read(0)["conv1.weight"] == 4 * 27
    assert ENTRIES["nestednet/resnet-56"].scheme == channels


@pytest.mark.slow
def test_layer_scheduling_leaves_out_thirds() -> None:
    network = made("nestednet/resnet-56-depth")
    for level, blocks in enumerate((3, 6, 9)):
        layers = {name.rpartition(".")[0] for name in network.read(level)}
        assert sum("conv" in layer for layer in layers) == 1 + 2 * 3 * blocks


@pytest.mark.slow
def test_the_core_and_the_full_level_alone() -> None:
    """Knowledge distillation of two levels: those of the three."""
    two, three = made("nestednet/wrn-32-4-distillation"), made("nestednet/wrn-32-4")
    assert two.params == three.params[::2]
    assert two.macs == three.macs[::2]


def test_labels_of_cifar() -> None:
    """Five fine classes each, with the indices of the data set's files."""
    taxonomy = cifar100()
    assert taxonomy.sizes == (100, 20)
    assert set(Counter(taxonomy.parents[0]).values()) == {5}
    assert taxonomy.parents[0][:10] == (4, 1, 14, 8, 0, 6, 7, 7, 18, 3)
    assert taxonomy.parents[0][-5:] == (0, 17, 8, 14, 13)
    fine, coarse = taxonomy.classes
    assert (fine[0], fine[99], coarse[4]) == ("apple", "worm", "fruit_and_vegetables")
    plain, more = hierarchy(fine_head=False), hierarchy()
    assert (plain.heads, more.heads) == ((("coarse",), ("fine",)), (("fine", "coarse"), ("fine",)))
    assert plain.serve == more.serve == ("coarse", "fine")


@pytest.mark.slow
def test_recipes_of_two_granularities() -> None:
    """Of 20 and of 100 classes; A averages both levels' fine classes, L reads 220 scores: 22,100 parameters."""
    backbone = partial(PreActivationResNet, depth=8, widening=4)
    added: dict[str, int] = {}
    for name in ("", "-a", "-l"):
        entry = replace(ENTRIES[f"nestednet/wrn-14-4-hierarchy{name}"], backbone=backbone, shape=(3, 16, 16))
        made = entry.recipe()
        net = made.build(verify=False)
        assert [tuple(net(*made.example_inputs, level=level).shape) for level in (0, 1)] == [(2, 20), (2, 100)]
        assert net.loss(net(*made.example_inputs), torch.tensor([3, 99])).isfinite()
        added[name] = sum(one.numel() for one_name, one in net.named_parameters() if "consensus" in one_name)
        assert len(net.levels) == (3 if name else 2)
        if name:
            assert net(*made.example_inputs, level=2).shape == (2, 100)
    assert added == {"": 0, "-a": 0, "-l": 22_100}


def test_names_of_the_classes_of_imagenet() -> None:
    taxonomy = subtree()
    fine, middle, coarse = taxonomy.classes
    assert (len(set(fine)), fine[0], fine[-1]) == (100, "strawberry", "mosque")
    assert coarse == ("natural object", "plant", "animal", "artifact")
    parents = {name: middle[parent] for name, parent in zip(fine, taxonomy.parents[0], strict=True)}
    assert (parents["cardoon"], parents["Basenji"], parents["minivan"]) == ("flower", "dog", "vehicle")
    assert subtree(fine_heads=True).heads == (("sub", "super"), ("sub", "intermediate"), ("sub",))
    assert subtree(fine_heads=True).serve == ("super", "intermediate", "sub")


def test_labels_of_imagenet() -> None:
    taxonomy = subtree()
    assert taxonomy.sizes == (100, 11, 4)
    assert taxonomy.heads == (("super",), ("intermediate",), ("sub",))
    kinds = Counter(taxonomy.parents[0])
    assert [kinds[kind] for kind in range(11)] == [9, 9, 3, 14, 5, 10, 10, 10, 10, 10, 10]
    assert taxonomy.parents[1] == (0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)


def test_hierarchical_and_consensus_networks() -> None:
    """Levels of 4, 11 and 100 classes; a learned consensus of three levels has 30,100 parameters."""
    backbone = partial(PreActivationResNet, depth=8, widening=4)
    made = replace(ENTRIES["nestednet/wrn-14-4"], backbone=backbone, shape=(3, 16, 16)).recipe()
    net = made.build(taxonomy=subtree(), verify=False)
    predictions = [prediction for level in net(*made.example_inputs).levels for prediction in level]
    assert [tuple(prediction.shape) for prediction in predictions] == [(2, 4), (2, 11), (2, 100)]
    assert isinstance(net.loss, TaxonomyLoss)
    assert net.loss(net(*made.example_inputs), torch.tensor([3, 99])).isfinite()
    learned = made.build(consensus="learned", verify=False)
    plain = sum(parameter.numel() for parameter in made.build(verify=False).parameters())
    assert sum(parameter.numel() for parameter in learned.parameters()) - plain == 30_100


def test_consensus_of_two_granularities() -> None:
    """CIFAR-100: 100 classes of both levels and 20 of the core make 220 scores, and 22,100 parameters."""
    classes = Taxonomy((tuple(index // 5 for index in range(100)),), heads=(("fine", "coarse"), ("fine",)))
    backbone = partial(PreActivationResNet, depth=8, widening=4)
    entry = replace(ENTRIES["nestednet/wrn-14-4"], backbone=backbone, shape=(3, 16, 16))
    scheme = NestedChannels((0.25, 1.0), where=("layer*",))
    net = replace(entry, scheme=scheme).recipe().build(taxonomy=classes, consensus="learned", verify=False)
    assert sum(one.numel() for name, one in net.named_parameters() if "consensus" in name) == 22_100


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_verified(name: str) -> None:
    """The whole transform with weights, at the size of the paper's images."""
    net = recipe(name).build()
    if ENTRIES[name].taxonomy is not None or isinstance(ENTRIES[name].scheme, NestedWeights):
        return  # heads of several granularities, and zeros that are not counted
    assert tuple(level.cost.params for level in net.levels) == made(name).params
    assert cost(net.captured.program, net.captured.batch).macs == made(name).macs[-1]
