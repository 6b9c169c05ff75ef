"""Nested weights: a lower level is the same network, all but its largest entries zero."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anytimeify import AnytimeModel, ArgumentError, Budget, NestedWeights, SchemeError, load, parse_scheme, transform
from anytimeify._torch import prepare_torchvision
from anytimeify.passes.rewrites.magnitude import largest, share_of
from anytimeify.runtime.masks import MaskSchedule, densities, refresh
from anytimeify.storage.export import FORMATS
from anytimeify.testing import (
    Backbone,
    assert_costs_increase,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    assert_sites_nested,
    backbones,
    check,
)
from tests.backbones import Residual, images
from tests.passes.masked import KINDS, Attention, Tied, TiedLayers, by_hand
from tests.processes import run_in_two_processes
from tests.rounding import close

prepare_torchvision()
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

RESIDUAL = ("stem.weight", "conv.weight", "fc.weight")


def net_of(backbone: nn.Module, x: Tensor | None = None, **options: Any) -> AnytimeModel:
    given = images() if x is None else x
    return transform(backbone, NestedWeights(**options), (given,), verify=x is not None).eval()


def masks_of(net: AnytimeModel, level: int) -> dict[str, Tensor]:
    prefix = f"anytime.{level}.masks."
    return {name.removeprefix(prefix): one for name, one in net.state_dict().items() if name.startswith(prefix)}


def retrained(net: AnytimeModel, seed: int = 1) -> AnytimeModel:
    """The model with other weights, as if it had been trained, and the masks of before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net


# What a level is.


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_keep_exactly_the_largest_entries(scope: str) -> None:
    backbone = Residual()
    net = net_of(backbone, densities=(0.1, 0.35, 1.0), scope=scope)
    weights = [backbone.get_parameter(name).detach().numpy() for name in RESIDUAL]
    for level, density in enumerate((0.1, 0.35)):
        found = masks_of(net, level)
        assert tuple(found) == RESIDUAL
        if scope == "global":
            expected = by_hand(weights, round(density * sum(weight.size for weight in weights)))
        else:
            expected = [by_hand([weight], round(density * weight.size))[0] for weight in weights]
        for name, mask in zip(RESIDUAL, expected, strict=True):
            assert np.array_equal(found[name].numpy(), mask), name


BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), (3, 32, 32)),
    "small resnet": (lambda: timm.create_model("test_resnet", num_classes=10), (3, 32, 32)),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=10), (3, 32, 32)),
    "vit": (lambda: timm.create_model("test_vit", num_classes=10, img_size=32), (3, 32, 32)),
    "nfnet": (lambda: timm.create_model("test_nfnet", num_classes=10), (3, 32, 32)),
}


def holds_together(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    make, shape = BACKBONES[name]
    backbone, x = make(), torch.randn(2, *shape)
    net = net_of(backbone, x, **options)
    check(net, backbone.eval(), (x,))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small resnet", {"scope": "global", "norms": "shared", "gradients": "straight-through"}),
        ("efficientnet", {"densities": (0.3, 1.0), "ends": "dense"}),
        ("vit", {"where": "blocks.*.mlp"}),
    ],
    ids=str,
)
def test_small_backbones(name: str, options: dict[str, Any]) -> None:
    holds_together(name, options)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", BACKBONES)
def test_real_backbones(name: str, scope: str) -> None:
    holds_together(name, {"scope": scope})


def random_backbone(backbone: Backbone, scheme: NestedWeights) -> None:
    model, x = backbone.build().double().eval(), backbone.example_inputs()[0].double()
    try:
        net = transform(model, scheme, (x,), verify=False)
    except SchemeError as error:
        if "keeps the same entries" not in str(error):
            raise
        reject()
    assert_full_equals_backbone(net, model, (x,), tolerance=1e-10)
    assert_levels_equal_extracts(net, (x,), tolerance=1e-10)
    assert_costs_increase(net)
    assert_sites_nested(net)
    assert_gradients_add_up(net, (x,), tolerance=1e-8)


random_schemes = st.builds(
    NestedWeights,
    densities=st.sampled_from([(0.3, 1.0), (0.05, 0.5, 1.0)]),
    scope=st.sampled_from(["layer", "global"]),
    norms=st.sampled_from(["private", "shared"]),
    gradients=st.sampled_from(["masked", "straight-through"]),
)


@settings(max_examples=3, deadline=None)
@given(backbones(2, 2), random_schemes)
def test_random_backbones(backbone: Backbone, scheme: NestedWeights) -> None:
    random_backbone(backbone, scheme)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(backbones(4, 3), random_schemes)
def test_random_backbones_at_length(backbone: Backbone, scheme: NestedWeights) -> None:
    random_backbone(backbone, scheme)


@pytest.mark.parametrize("options", [{}, {"scope": "global", "gradients": "straight-through"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_however_weights_are_read(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    make, x = KINDS[kind]
    backbone = make()
    net = net_of(backbone, x, **options)
    check(net, backbone.eval(), (x,))
    rows = densities(net)
    assert_costs_increase(net)
    for density, kept in zip((0.1, 0.3, 1.0), rows.kept, strict=True):
        assert abs(kept - density * rows.kept[-1]) <= len(rows.weights)


def test_an_extract_is_the_backbone_with_zeros() -> None:
    backbone = Residual()
    net = net_of(backbone, densities=(0.2, 1.0), norms="shared")
    small = net.extract(0)
    # `unused` is nowhere read, so an extract does without it
    assert small.state_dict().keys() == {n for n in backbone.state_dict() if not n.startswith("unused")}
    thin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        for name in RESIDUAL:
            weight = thin.get_parameter(name)
            mask = by_hand([weight.numpy()], round(0.2 * weight.numel()))[0]
            weight[~torch.from_numpy(mask)] = 0
            ours = small.get_parameter(name)
            assert torch.equal(ours, weight)
            assert not torch.signbit(ours[ours == 0]).any()
            assert isinstance(ours, nn.Parameter)
    torch.testing.assert_close(small(images()), thin(images()))
    torch.testing.assert_close(net(images(), level=0), thin(images()))


def test_packed_projections_keep_counts_of_their_parts() -> None:
    torch.manual_seed(0)
    net = net_of(Attention(), KINDS["attention"][1])
    full, thin = net.levels[-1].cost, net.levels[0].cost
    weight = net.get_parameter("attention.in_proj_weight").detach().numpy()
    mask = by_hand([weight], 77)[0].reshape(3, -1).sum(1)
    dense = full.macs - 3 * 256 - (5 + 5) * 256 - 3 * 256 - 16 * 7  # attention itself: queries of 3 tokens, 5 others
    assert thin.macs == dense + 3 * mask[0] + 5 * (mask[1] + mask[2]) + 3 * 26 + 11


def test_tensors_that_something_else_reads_stay_dense() -> None:
    net = net_of(Tied(), KINDS["tied"][1])
    assert set(masks_of(net, 0)) == {"layer.weight"}
    assert "embedding.weight is no weight of a layer alone" in str(net.report())
    one = net_of(TiedLayers(), KINDS["tied layers"][1])
    assert set(masks_of(one, 0)) == {"first.weight", "head.weight"}


def test_norms_may_be_private_or_shared() -> None:
    added = {name for name, _ in net_of(Residual()).named_parameters() if name.startswith("anytime.")}
    assert added == {f"anytime.{k}.{norm}.{which}" for k in (0, 1) for norm in ("bn1", "bn2") for which in KIND}
    shared = net_of(Residual(), norms="shared")
    assert not [name for name, _ in shared.named_parameters() if name.startswith("anytime.")]


KIND = ("weight", "bias")


def test_what_no_mask_reaches_is_computed_once() -> None:
    net = net_of(Residual(), ends="dense")
    assert set(masks_of(net, 0)) == {"conv.weight"}
    nodes = [node.name for node in net.rewritten.program.graph.nodes]
    assert "level0_conv" in nodes
    assert not {"level0_stem", "level0_bn1"} & set(nodes)
    full = [node for node in net.rewritten.program.graph.nodes if node.name == "conv"]
    assert [source.name for source in full[0].all_input_nodes if source.op == "get_attr"] == [
        "conv_weight",
        "conv_bias",
    ]


# Costs.


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_costs_count_what_is_kept(scope: str) -> None:
    backbone = Residual()
    net = net_of(backbone, densities=(0.1, 0.3, 1.0), scope=scope)
    positions = {"stem.weight": 36, "conv.weight": 36, "fc.weight": 1}
    others = 8 + 5 + 4 * 8  # biases and norms
    for level in (0, 1):
        kept = {name: int(mask.sum()) for name, mask in masks_of(net, level).items()}
        assert net.levels[level].cost.macs == sum(kept[name] * positions[name] for name in RESIDUAL)
        assert net.levels[level].cost.params == sum(kept.values()) + others
    assert net.levels[2].cost.params == sum(p.numel() for n, p in backbone.named_parameters() if "unused" not in n)
    assert net.levels[0].cost.activation_bytes == net.levels[2].cost.activation_bytes
    assert net.select(Budget(params=net.levels[1].cost.params)).index == 1


# Gradients.


def gradients(net: AnytimeModel, level: int) -> dict[str, Tensor]:
    net.zero_grad()
    nn.functional.cross_entropy(net(images(), level=level), torch.arange(4)).backward()
    return {name: net.get_parameter(name).grad.clone() for name in RESIDUAL}  # type: ignore[union-attr]  # all are read


def test_levels_give_no_gradient_to_what_they_do_not_read() -> None:
    net = net_of(Residual())
    for level in (0, 1):
        for name, gradient in gradients(net, level).items():
            mask = masks_of(net, level)[name]
            assert not gradient[~mask].any()
            assert gradient[mask].any()


def test_straight_through_gradients_are_those_of_the_masked_network_everywhere() -> None:
    torch.manual_seed(0)
    backbone = Residual()
    net = net_of(backbone, gradients="straight-through", norms="shared", densities=(0.3, 1.0))
    plain = net_of(backbone, norms="shared", densities=(0.3, 1.0))
    x = images()
    assert close(net(x).levels[0], plain(x).levels[0])
    masked = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        for name, mask in masks_of(net, 0).items():
            masked.get_parameter(name).mul_(mask)
    nn.functional.cross_entropy(masked(x), torch.arange(4)).backward()
    for name, gradient in gradients(net, 0).items():
        torch.testing.assert_close(gradient, masked.get_parameter(name).grad)
        assert gradient[~masks_of(net, 0)[name]].any()


@pytest.mark.parametrize("way", ["masked", "straight-through"])
def test_it_trains(way: str) -> None:
    torch.manual_seed(0)
    net = net_of(Residual(), gradients=way).train()
    schedule = MaskSchedule(net, every=4)
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = net.loss(net(images()), torch.arange(4))
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_it_compiles() -> None:
    net = net_of(Residual())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(images()).levels, net(images()).levels, strict=True):
        torch.testing.assert_close(result, expected)
    net.train()
    net.loss(compiled(images()), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("format", FORMATS)
def test_extracts_are_written(tmp_path: Path, format: str) -> None:
    FORMATS[format](net_of(Residual()).extract(0, fold=True), images(), tmp_path / f"small.{format}", True)
    assert (tmp_path / f"small.{format}").stat().st_size > 0


DISTRIBUTED = """
from torch.nn.parallel import DistributedDataParallel
from anytimeify import NestedWeights
from anytimeify.runtime.masks import MaskSchedule
from tests.backbones import residual_net, images

torch.manual_seed(0)
net = residual_net(NestedWeights(scope="global"), verify=False).train()
model = DistributedDataParallel(net)
optimiser, schedule = torch.optim.SGD(net.parameters(), 0.1), MaskSchedule(net, every=2)
for step in range(5):
    optimiser.zero_grad()
    net.loss(model(images(8, seed=10 * step + rank)), torch.arange(8) % 5).backward()
    optimiser.step()
    schedule.step()
masks = [b.float().flatten() for n, b in net.named_buffers() if ".masks." in n]
mine = torch.cat([*(p.detach().flatten() for p in net.parameters()), *masks])
assert len(masks) == 6
"""


@pytest.mark.slow
def test_distributed_processes_keep_the_same_masks(tmp_path: Path) -> None:
    run_in_two_processes(DISTRIBUTED, tmp_path)


# Masks over time.


def test_refresh_follows_the_weights_and_keeps_nesting() -> None:
    net = retrained(net_of(Residual(), scope="global"))
    before, costs = masks_of(copy.deepcopy(net), 0), net.levels
    changed = refresh(net)
    assert 0 < changed < 1
    weights = [net.get_parameter(name).detach().numpy() for name in RESIDUAL]
    total = sum(weight.size for weight in weights)
    for level, density in enumerate((0.1, 0.3)):
        expected = by_hand(weights, round(density * total))
        for name, mask in zip(RESIDUAL, expected, strict=True):
            assert np.array_equal(masks_of(net, level)[name].numpy(), mask)
    for name in RESIDUAL:
        assert not (masks_of(net, 0)[name] & ~masks_of(net, 1)[name]).any()
    assert any(not torch.equal(before[name], masks_of(net, 0)[name]) for name in RESIDUAL)
    assert net.levels[0].cost.params == costs[0].cost.params  # as many over all weights
    assert net.levels[0].cost.macs != costs[0].cost.macs  # in other layers
    kept = {name: int(mask.sum()) for name, mask in masks_of(net, 0).items()}
    assert net.levels[0].cost.macs == 36 * (kept["stem.weight"] + kept["conv.weight"]) + kept["fc.weight"]
    assert refresh(net) == 0


def test_a_schedule_refreshes_every_so_many_steps() -> None:
    net = net_of(Residual())
    schedule = MaskSchedule(net, every=3, until=7)
    assert [schedule.step() for _ in range(10)] == [False, False, True, False, False, True, False, False, False, False]
    again = MaskSchedule(net, every=3)
    again.load_state_dict(schedule.state_dict())
    assert again.steps == 10
    with pytest.raises(ArgumentError, match="every=0"):
        MaskSchedule(net, every=0)
    with pytest.raises(ArgumentError, match="until=True"):
        MaskSchedule(net, every=1, until=True)


def test_masks_belong_to_nested_weights() -> None:
    other = transform(Residual(), "nested-channels{widths=0.5,1}", (images(),))
    with pytest.raises(ArgumentError, match="a model of the scheme nested-channels"):
        refresh(other)
    with pytest.raises(ArgumentError, match="this is a Residual"):
        densities(Residual())  # type: ignore[arg-type]  # refused input


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_saved_masks_come_back_and_are_not_made_anew(tmp_path: Path, scope: str) -> None:
    net = retrained(net_of(Residual(), scope=scope))
    net.save(tmp_path / "net")
    again = load(tmp_path / "net")
    assert again.levels == net.levels
    for level in (0, 1):
        for name, mask in masks_of(net, level).items():
            assert torch.equal(masks_of(again, level)[name], mask)
        assert close(again(images(), level=level), net(images(), level=level))
        assert close(again.extract(level)(images()), net.extract(level)(images()))
    assert refresh(again) == refresh(net) > 0
    assert again.levels == net.levels


def test_state_dicts_hold_the_masks_and_costs_follow() -> None:
    one, other = net_of(Residual(), scope="global"), net_of(Residual(), scope="global")
    assert one.levels != other.levels
    other.load_state_dict(one.state_dict())
    assert other.levels == one.levels
    assert close(one(images(), level=0), other(images(), level=0))
    twin = copy.deepcopy(net_of(Residual(), scope="global"))
    assert twin.levels != one.levels
    twin.load_state_dict(one.state_dict())
    assert twin.levels == one.levels


def test_a_checkpoint_of_the_backbone_loads() -> None:
    net, backbone = net_of(Residual()), Residual()
    assert not net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys
    assert close(net(images(), level=-1), backbone.eval()(images()))
    assert refresh(net) > 0
    fresh = net_of(backbone)
    assert all(torch.equal(mask, masks_of(fresh, 0)[name]) for name, mask in masks_of(net, 0).items())


def test_copies_share_no_masks() -> None:
    net = net_of(Residual(), scope="global")
    twin = copy.deepcopy(net)
    levels = net.levels
    refresh(retrained(twin))
    assert net.levels == levels
    assert any(not torch.equal(masks_of(net, 0)[name], masks_of(twin, 0)[name]) for name in RESIDUAL)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_masks_stay_masks_in_other_precisions(kind: torch.dtype) -> None:
    net = net_of(Residual()).to(kind)
    assert all(mask.dtype == torch.bool for mask in masks_of(net, 0).values())
    refresh(net)
    assert net(images().to(kind)).levels[0].dtype == kind
    assert close(net.extract(0)(images().to(kind)), net(images().to(kind), level=0))


# Reports.


def test_densities_are_reported() -> None:
    net = net_of(Residual(), densities=(0.1, 0.5, 1.0))
    rows = densities(net)
    assert [row.name for row in rows.weights] == list(RESIDUAL)
    assert rows.weights[0].kept == (22, 108, 216)
    assert rows.kept == (22 + 58 + 4, 108 + 288 + 20, 216 + 576 + 40)
    assert "stem.weight" in str(rows)
    assert "10.2 %" in str(rows)
    assert json.loads(rows.to_json())["weights"][1] == {"name": "conv.weight", "entries": 576, "kept": [58, 288, 576]}
    report = net.report()
    assert "Masked weights: 3" in str(report)
    assert json.loads(report.to_json())["densities"] == json.loads(rows.to_json())["weights"]
    assert "| conv.weight | 576 |" in report.to_markdown()


# What is refused, and how schemes are written.


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"densities": (0.5,)}, "densities=.*expected increasing numbers"),
        ({"densities": (0.5, 0.3, 1.0)}, "expected increasing numbers"),
        ({"densities": (0.0, 1.0)}, "expected increasing numbers"),
        ({"densities": (0.5, 1.5)}, "expected increasing numbers"),
        ({"densities": ()}, "expected increasing numbers"),
        ({"densities": (True,)}, "expected increasing numbers"),
        ({"densities": ("half", 1.0)}, "expected increasing numbers"),
        ({"densities": (float("nan"), 1.0)}, "expected increasing numbers"),
        ({"scope": "row"}, "scope='row': expected layer or global"),
        ({"norms": "none"}, "norms='none': expected private or shared"),
        ({"gradients": "dense"}, "gradients='dense': expected masked or straight-through"),
        ({"ends": 1}, "ends=1: expected masked or dense"),
        ({"where": 3}, "where=3: expected all, or names of layers"),
    ],
    ids=str,
)
def test_fields_out_of_range(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemeError, match=says):
        NestedWeights(**fields)


def test_what_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"density 0\.5 keeps the same entries as 0\.5001"):
        net_of(Residual(), densities=(0.5, 0.5001, 1.0))
    with pytest.raises(SchemeError, match=r"density 0\.9999 keeps the same entries as 1, .* has 576 of them"):
        net_of(Residual(), densities=(0.9999, 1.0), scope="global")
    with pytest.raises(SchemeError, match=r"names no weight; there are 3, such as stem\.weight"):
        net_of(Residual(), where="layer4")
    with pytest.raises(SchemeError, match="no weights to mask:\n  - it has no convolution"):
        net_of(nn.BatchNorm2d(3))
    with pytest.raises(SchemeError, match="use ends='masked'"):
        net_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5)), ends="dense")


def test_patterns_name_parameters_layers_and_parts() -> None:
    assert set(masks_of(net_of(Residual(), where=("conv", "fc.weight")), 0)) == {"conv.weight", "fc.weight"}
    assert set(masks_of(net_of(Residual(), where="s*"), 0)) == {"stem.weight"}


@pytest.mark.parametrize(
    "scheme",
    [
        NestedWeights(),
        NestedWeights((1.0,)),
        NestedWeights((1 / 3, 1.0), "global"),
        NestedWeights(norms="shared", gradients="straight-through", where=("1.10", "blocks.*.mlp"), ends="dense"),
        NestedWeights(where="layer*"),
    ],
    ids=str,
)
def test_schemes_are_written_and_read(scheme: NestedWeights) -> None:
    assert parse_scheme(str(scheme)) == scheme


def test_spec_strings() -> None:
    assert parse_scheme("nested-weights{densities=0.1,0.5,1 scope=global}") == NestedWeights((0.1, 0.5, 1.0), "global")


# Magnitudes.

tensors = st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.5]), min_size=1, max_size=12), min_size=1)


@settings(deadline=None)
@given(tensors, st.floats(0.001, 1), st.floats(0.001, 1))
def test_any_masks_are_exact_and_nest(values: list[list[float]], one: float, other: float) -> None:
    parts = [torch.tensor(part) for part in values]
    total = sum(map(len, values))
    few, many = sorted(share_of(total, density) for density in (one, other))
    small, large = largest(parts, few), largest(parts, many)
    arrays = [part.numpy() for part in parts]
    for mask, expected in zip(small + large, by_hand(arrays, few) + by_hand(arrays, many), strict=True):
        assert np.array_equal(mask.numpy(), expected)
    assert not any((inner & ~outer).any() for inner, outer in zip(small, large, strict=True))


def test_what_is_not_a_number_counts_as_largest() -> None:
    values = torch.tensor([1.0, float("nan"), -float("inf"), 5.0])
    assert largest([values], 2)[0].tolist() == [False, True, True, False]
    assert largest([values.bfloat16(), values.double()], 5)[1].tolist() == [False, True, True, False]
    assert largest([torch.tensor([1 + 1j, 2j])], 1)[0].tolist() == [False, True]
