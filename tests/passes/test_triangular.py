"""Triangular connectivity: one pass for all levels, what no later chunk may change, and streams that repeat nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import anytimeify  # noqa: F401  # mends torchvision before it is imported
from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.contract import spec
from anytimeify.errors import SchemeError
from anytimeify.passes.rewrites.block_triangular_dependence import BlockTriangularDependence, Kind
from anytimeify.passes.rewrites.project import project
from anytimeify.testing import assert_prefixes_nest, check, randomise
from anytimeify.verification import difference
from tests.passes.test_narrow import assert_types_are_true

QUARTERS = (0.25, 0.5, 0.75, 1.0)


def nested(model: nn.Module, x: Tensor, widths: tuple[float, ...] = QUARTERS, **fields: Any) -> AnytimeModel:
    scheme = NestedChannels(widths, connectivity="triangular", **fields)
    return transform(randomise(model).double().eval(), scheme, (x.double(),))


def timm_model(name: str, **arguments: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=10, **arguments)
    return model


def torchvision_model(name: str, **arguments: Any) -> nn.Module:
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(num_classes=10, **arguments)
    return model


def image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet, basic blocks": lambda: (timm_model("test_resnet"), image(32)),
    "ResNet, bottlenecks": lambda: (
        timm_model("resnet26", stem_width=8, channels=(8, 16, 24, 32), layers=(1, 1, 1, 1)),
        image(32),
    ),
    "DenseNet": lambda: (
        timm_model("densenet121", growth_rate=8, block_config=(2, 2, 2, 2), bn_size=2),
        image(32),
    ),
    "MobileNetV2": lambda: (
        torchvision_model("MobileNetV2", inverted_residual_setting=[[1, 8, 1, 1], [4, 12, 2, 2]]),
        image(32),
    ),
    "ConvNeXt": lambda: (timm_model("test_convnext"), image(64)),
    "ViT": lambda: (
        timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4),
        image(32),
    ),
    "ShuffleNetV2": lambda: (
        torchvision_model("ShuffleNetV2", stages_repeats=[1, 2, 1], stages_out_channels=[8, 16, 24, 32, 64]),
        image(32),
    ),
    "weight standardisation": lambda: (timm_model("test_nfnet"), image(64)),
    "squeeze and excite": lambda: (timm_model("test_efficientnet"), image(32)),
    "global response norms": lambda: (
        timm_model("convnextv2_nano", depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)),
        image(64),
    ),
    "group norms": lambda: (timm_model("test_resnet", norm_layer="groupnorm1"), image(32)),
}


LONG = ("ShuffleNetV2", "weight standardisation", "squeeze and excite", "global response norms")


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in NETWORKS])
def test_whole_networks(name: str) -> None:
    """Levels against extracts, bits under changes of later chunks, gradients of one pass and of many, saved files."""
    model, x = NETWORKS[name]()
    net = nested(model, x)
    check(net, model, tolerance=1e-9)
    with torch.no_grad():
        together = net.eval()(x.double()).levels
        for expected, (_, given) in zip(together, net.stream(x.double()), strict=True):
            assert difference(expected, given) < 1e-9
    assert streamed(net, x.double()) <= 1.05


def test_the_program_is_canonical_and_its_types_are_true() -> None:
    model, x = NETWORKS["ConvNeXt"]()
    captured = capture(model, (x,))
    rewritten = NestedChannels(QUARTERS, connectivity="triangular").apply(captured, analyse(captured.program))
    spec.verify(rewritten.program)
    assert_types_are_true(rewritten.program, x)


def streamed(net: AnytimeModel, x: Tensor) -> float:
    """Operations of a stream over those of the full level's extract."""
    net.requires_grad_(False)
    full = net.extract(-1 % len(net.levels))
    counts = []
    for run in (lambda: list(net.stream(x)), lambda: full(x)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        counts.append(counter.get_total_flops())
    return float(counts[0] / counts[1])


class Plain(nn.Module):
    """Convolutions without anything that mixes channels but themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mid = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.again = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.bn(self.stem(x)).relu()).relu()
        result: Tensor = self.fc((x + self.again(x)).relu().mean((2, 3)))
        return result


def test_the_full_level_is_the_backbone_with_masked_weights() -> None:
    """Masks made by hand: a row reads columns of its own quarter and of those before."""
    model, x = Plain(), image(8)
    net = nested(model, x)
    by_hand = copy.deepcopy(model)
    for layer in (by_hand.mid, by_hand.again):
        rows, columns = (torch.arange(size) * 4 // size for size in layer.weight.shape[:2])
        layer.weight.data *= (columns[None, :] <= rows[:, None])[..., None, None]
    with torch.no_grad():
        torch.testing.assert_close(net(x.double()).levels[-1], by_hand(x.double()))
        assert not torch.allclose(net(x.double()).levels[-1], model(x.double()))
    blocks = sum(sizes * (k + 1) for k in range(4) for sizes in (4 * 2 * 9 * 16, 4 * 4 * 16))  # 16 places
    assert net.levels[-1].cost.macs == 8 * 3 * 9 * 64 + blocks + 16 * 5
    mid = sum(4 * 2 * (k + 1) * 9 for k in range(4))
    assert net.levels[-1].cost.params == (8 * 3 * 9 + 8) + 16 + mid + (sum(16 * (k + 1) for k in range(4)) + 16) + 85


@pytest.mark.parametrize(
    ("name", "operator", "count", "instead"),
    [
        ("ViT", "prefix_norm", 5, "layer_norm"),
        ("weight standardisation", "prefix_standardise", 18, "index_copy"),
        ("group norms", "prefix_group_norm", 15, "group_norm"),
    ],
)
def test_norms_of_all_levels_are_one_operation(name: str, operator: str, count: int, instead: str) -> None:
    model, x = NETWORKS[name]()
    captured = capture(model, (x,))
    rewritten = NestedChannels(QUARTERS, connectivity="triangular").apply(captured, analyse(captured.program))
    whole = project(rewritten.program, [rewritten.position(3, role="level")])
    targets = [str(node.target) for node in whole.graph.nodes]
    assert targets.count(f"anytimeify.{operator}.default") == count
    assert f"aten.{instead}.default" not in targets


def test_a_mean_of_all_channels_reads_every_chunk_once() -> None:
    """A global response norm: its divisor is a mean of all channels."""
    model, x = NETWORKS["global response norms"]()
    captured = capture(model, (x,))
    rewritten = NestedChannels(QUARTERS, connectivity="triangular").apply(captured, analyse(captured.program))
    whole = project(rewritten.program, [rewritten.position(3, role="level")])
    divisions = [node for node in whole.graph.nodes if node.target is torch.ops.aten.div.Tensor]
    assert len(divisions) == 4 * 4
    assert [node.args[0].meta["type"].shape[1].coefficient for node in divisions] == [8] * 4 + [16] * 8 + [24] * 4


def test_a_layer_norm_takes_the_statistics_of_the_chunks_so_far() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(4, 6)
    net = nested(model, x, (0.25, 0.5, 1.0))
    first, norm, last = model.double()
    assert isinstance(norm, nn.LayerNorm)
    hidden = first(x.double())
    normed = torch.empty_like(hidden)
    for start, end in ((0, 2), (2, 4), (4, 8)):
        scaled = F.layer_norm(hidden[:, :end], (end,), norm.weight[:end], norm.bias[:end], norm.eps)
        normed[:, start:end] = scaled[:, start:end]
    torch.testing.assert_close(net(x.double()).levels[-1], last(normed))


class ByHand(nn.Module):
    """A root-mean-square norm in plain operations: a mean of all channels goes back into every one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        result: Tensor = self.last(x)
        return result


def test_a_mean_of_all_channels_is_one_of_those_so_far() -> None:
    model, x = ByHand(), torch.randn(4, 6)
    net = nested(model, x, (0.5, 1.0))
    hidden = model.first(x.double())
    means = torch.stack([hidden[:, :4].pow(2).mean(-1), hidden.pow(2).mean(-1)], dim=1).repeat_interleave(4, dim=1)
    torch.testing.assert_close(net(x.double()).levels[-1], model.last(hidden * torch.rsqrt(means + 1e-6) * model.scale))


def test_training_never_moves_a_masked_weight_into_an_earlier_level() -> None:
    """Momentum and weight decay of masked entries change nothing, and their gradients are zero."""
    model, x = Plain(), image(8)
    net = nested(model, x).train()
    before = model.mid.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net.loss(net(x.double()), torch.tensor([0, 1])).backward()
        weight = dict(net.named_parameters())["mid.weight"]
        rows, columns = (torch.arange(size) * 4 // size for size in weight.shape[:2])
        late = columns[None, :] > rows[:, None]
        assert weight.grad is not None
        assert not weight.grad[late].any()
        assert weight.grad[~late].any()
        optimizer.step()
    assert not torch.equal(weight, before)
    assert_prefixes_nest(net)


def test_norms_of_nested_channels_are_shared_and_heads_are_private() -> None:
    net = nested(Plain(), image(8))
    own = sorted(name for name in net.tensors() if name.startswith("anytime.") and ".constants." not in name)
    assert own == [f"anytime.{level}.fc.{name}" for level in range(3) for name in ("bias", "weight")]
    assert not [name for name in nested(Plain(), image(8), heads="shared").state_dict() if name.startswith("anytime.")]


def test_calibration_gives_every_level_its_statistics() -> None:
    """Those of one pass: mean and variance of what reaches a norm, whichever level reads them."""
    net, batches = nested(Plain(), image(8)), [torch.randn(8, 3, 8, 8).double() for _ in range(3)]
    net.calibrate(batches)
    norm = net.get_submodule("bn")
    stem = net.get_submodule("stem")
    expected = torch.stack([stem(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)


def test_checkpoints_of_the_backbone_load() -> None:
    model, other, x = Plain(), randomise(Plain()).double(), image(8)
    net = nested(model, x)
    missing, unexpected = net.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("anytime.") for name in missing)


def test_one_width_is_the_backbone() -> None:
    model, x = Plain(), image(8)
    net = nested(model, x, (1.0,))
    with torch.no_grad():
        torch.testing.assert_close(net(x.double()).levels[0], model.double()(x.double()))


def test_levels_that_add_nothing_to_some_axis() -> None:
    """An axis of two channels has nothing to give to three of four levels."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 16, 1), nn.Conv2d(16, 2, 1), nn.Flatten())
    x = image(4)
    check(nested(model, x), model, tolerance=1e-9)


def test_a_stream_of_full_width_is_refused_with_the_place() -> None:
    """Only the inside of blocks is nested: every level has a stream of its own then, which is dense nesting."""
    with pytest.raises(SchemeError, match=r"triangular.*(conv2d|linear).*conv3.*times the backbone.*dense"):
        nested(timm_model("resnet26", channels=(8, 8, 8, 8), layers=(1, 1, 1, 1)), image(32), where="inner")


def test_a_stream_that_is_the_output_is_refused_for_that() -> None:
    """An embedding model: what runs through its residual additions is what it returns."""
    model = timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4)
    model.head = nn.Identity()
    with pytest.raises(SchemeError, match=r"attn\.proj.*an output of the model.*times the backbone"):
        nested(model, image(32))


def test_what_an_operation_does_to_chunks() -> None:
    captured = capture(ByHand().eval(), (torch.randn(2, 6),))
    axes = analyse(captured.program)
    dependence = BlockTriangularDependence(captured.program, axes, [axes.widths(0.5), {}])
    kinds = {node.name: kind for node, kind in dependence.kinds.items() if node.op == "call_function"}
    assert kinds == {
        "first": Kind.WHOLE,  # reads an input that is the same at every level
        "pow_op": Kind.WHOLE,
        "mean": Kind.SEPARATE,
        "add": Kind.SEPARATE,
        "rsqrt": Kind.SEPARATE,
        "mul": Kind.ASSEMBLED,
        "mul_1": Kind.WHOLE,
        "last": Kind.SEPARATE,
    }
