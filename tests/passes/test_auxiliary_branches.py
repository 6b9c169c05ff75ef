"""Auxiliary branches: each is the network that a user would have written, the backbone stays what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, reject
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, AuxiliaryBranches, Branch, Budget, SchemeError, load, parse_scheme, transform
from anytimeify.losses import JointLoss
from anytimeify.passes.rewrites.project import project
from anytimeify.testing import Backbone, assert_costs_increase, assert_levels_equal_extracts, backbones, check
from tests.examples import examples
from tests.passes.branches import KINDS, Dense, Padded, PreActivation, Projected, Staged, images
from tests.rounding import close

EARLY = Branch("stage1", repeats={"stage2": 2, "stage3": 1})
LATE = Branch("stage2", widths={"stage3": 2.0})


def net_of(backbone: nn.Module, *branches: Branch, **options: Any) -> AnytimeModel:
    torch.manual_seed(0)
    return transform(backbone, AuxiliaryBranches(branches or 2, **options), (images(),), loss=JointLoss()).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_is_the_network_with_these_repeats_and_widths(kind: type[Staged]) -> None:
    net = net_of(kind(), EARLY, LATE)
    by_hand = [kind(repeats=(2, 2, 1)), kind(widths=(8, 16, 64))]
    for level, expected in enumerate(by_hand):
        expected.eval().load_state_dict(net.extract(level).state_dict())
        torch.testing.assert_close(net(images()).levels[level], expected(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_holds_for_any_scheme_holds(kind: type[Staged]) -> None:
    backbone = kind()
    net = net_of(backbone)
    check(net, backbone, (images(),))
    assert_costs_increase(net)
    assert all(0 < level.cost.macs < net.levels[-1].cost.macs for level in net.levels[:-1])


def test_the_full_level_is_the_captured_backbone_node_for_node() -> None:
    backbone = Padded().eval()
    net = net_of(backbone, EARLY, LATE)
    assert str(project(net.rewritten.program, [net.full])) == str(net.captured.program)
    assert close(net(images()).levels[-1], backbone(images()))
    assert close(net.extract(-1)(images()), backbone(images()))


def test_a_branch_dearer_than_the_backbone_is_for_training_only() -> None:
    net = net_of(Projected(), EARLY, LATE)
    assert [level.training_only for level in net.levels] == [False, True, False]
    assert [level.index for level, _ in net.stream(images())] == [0, 2]
    assert net.select(Budget(macs=1e12)).index == 2
    assert len(net(images()).levels) == 3


def test_levels_are_in_the_order_of_their_forks() -> None:
    net = net_of(Projected(), LATE, EARLY)
    assert [level.name for level in net.levels] == ["branch at stage1", "branch at stage2", "full"]


def test_branches_of_a_frozen_backbone_train() -> None:
    net = net_of(Projected().requires_grad_(False), EARLY, EARLY)
    assert [level.name for level in net.levels] == ["branch at stage1", "branch at stage1 (2)", "full"]
    trained = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"anytime"}


def test_a_stream_computes_the_trunk_once() -> None:
    net = net_of(Projected(repeats=(2, 2, 2)))
    with FlopCounterMode(display=False) as joint:
        expected = net(images()).levels
    with FlopCounterMode(display=False) as streamed:
        given = [prediction for _, prediction in net.stream(images())]
    assert streamed.get_total_flops() == joint.get_total_flops()
    for one, other in zip(given, expected, strict=True):
        assert close(one, other)


def test_branches_have_parameters_of_their_own() -> None:
    net = net_of(Projected(), EARLY)
    names = {name for name, _ in net.named_parameters()}
    assert "anytime.0.stage2.0.conv1.weight" in names
    assert "anytime.0.stage1.0.conv1.weight" not in names
    net.train()
    net(images()).levels[0].sum().backward()
    state = dict(net.named_parameters())
    assert state["stage3.0.conv1.weight"].grad is None
    assert state["stage1.0.conv1.weight"].grad is not None
    assert state["anytime.0.stage2.0.conv1.weight"].grad is not None


def test_an_exit_holds_only_what_it_needs() -> None:
    net = net_of(Projected(), EARLY)
    held = sum(parameter.numel() for parameter in net.extract(0).parameters())
    assert held == net.levels[0].cost.params
    assert held == sum(parameter.numel() for parameter in Projected(repeats=(2, 2, 1)).parameters())


def test_batch_norms_of_branches_estimate_their_own_statistics() -> None:
    net = net_of(Projected(), EARLY).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(images())
    changed = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert "anytime.0.stage2.0.bn1.running_mean" in changed
    assert "anytime.0.stage2.0.bn1.num_batches_tracked" in changed
    assert "stage2.0.bn1.running_mean" in changed


@pytest.mark.parametrize("heads", ["branch", "pool"])
def test_saved_and_read_again(heads: str, tmp_path: Any) -> None:
    net = net_of(Dense(), heads=heads)
    net.save(tmp_path / "net")
    again = load(tmp_path / "net")
    for one, other in zip(net(images()).levels, again(images()).levels, strict=True):
        assert close(one, other)


def test_pooled_heads_read_features_at_four_by_four_positions() -> None:
    net = net_of(Projected(), Branch("stage1", head="pool"))
    layer = net.get_parameter("anytime.0.pooled.weight")
    assert layer.shape == (5, 8 * 16)
    features = Projected(repeats=(2, 3, 3))
    features.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("anytime")})
    x = features.eval().stage1(features.stem(images()))
    pooled = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
    expected = nn.functional.linear(pooled, layer, net.get_parameter("anytime.0.pooled.bias"))
    torch.testing.assert_close(net(images()).levels[0], expected)
    assert_levels_equal_extracts(net)


def test_pooled_heads_of_sequences_average_the_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.second(self.first(x).relu()).relu().mean(1))
            return result

    x = torch.randn(2, 5, 6)
    net = transform(Tokens(), AuxiliaryBranches((Branch("first", head="pool"),)), (x,), loss=JointLoss())
    assert net.get_parameter("anytime.0.pooled.weight").shape == (3, 8)


def test_weights_of_a_wider_branch_are_drawn_for_their_size() -> None:
    torch.manual_seed(0)
    net = net_of(Projected(widths=(16, 32, 64)), Branch("stage2", widths={"stage3": 4.0}))
    wide = net.get_parameter("anytime.0.stage3.1.conv1.weight").detach()
    plain = nn.Conv2d(256, 256, 3).weight.detach()
    assert wide.shape == plain.shape
    assert float(wide.std() / plain.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(net.get_parameter("anytime.0.stage3.1.bn1.weight"), torch.ones(256))


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        (Branch("stage9"), "there is no layer 'stage9'"),
        (Branch("stage1.0.conv1"), "at: data flows around 'stage1.0.conv1'"),
        (
            Branch("stage1", repeats={"stage3": 9}),
            "'stage3' has 3 blocks behind the fork, of which at least 1 has to stay; 9 are asked for",
        ),
        (Branch("stage2", repeats={"stage1": 1}), "no block of 'stage1' behind the fork"),
        (Branch("stage1", repeats={"stage3": 2, "stage3.2": 1}), "name the same blocks and ask for different numbers"),
        (Branch("stage2", widths={"stage1": 2.0}), "no channel axis is made in 'stage1'"),
        (Branch("stage2", widths={"head": 2.0}), "no channel axis is made in 'head'"),
    ],
)
def test_branches_that_cannot_be(branch: Branch, said: str) -> None:
    with pytest.raises(SchemeError, match=said):
        net_of(Projected(), branch)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(self.up(x).relu())
        return result


def test_counts_of_blocks_and_of_blocks_inside_them_fit_together() -> None:
    stages = (nn.Sequential(*(Residual() for _ in range(count))) for count in (2, 3))
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Sequential(*stages), nn.Linear(8, 3))

    def exit_of(repeats: dict[str, int]) -> str:
        scheme = AuxiliaryBranches((Branch("0", repeats=repeats),))
        return str(transform(backbone, scheme, (torch.randn(2, 6),), loss=JointLoss()).extract(0).code)

    assert exit_of({"1": 2, "1.1": 1}).count("up") > exit_of({"1": 1}).count("up")
    with pytest.raises(SchemeError, match="name the same blocks"):
        exit_of({"1": 1, "1.1": 2})


def test_layers_between_the_blocks_of_another_layer_stay() -> None:
    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.between, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(Residual() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for place, block in enumerate(self.blocks):
                x = block(self.between(x) if place == 2 else x)
            result: Tensor = self.head(x)
            return result

    scheme = AuxiliaryBranches((Branch("stem", repeats={"blocks": 2}),))
    net = transform(Interleaved(), scheme, (torch.randn(2, 6),), loss=JointLoss())
    small = set(net.extract(0).state_dict())
    assert "between.weight" in small
    assert "blocks.1.up.weight" in small
    assert "blocks.2.up.weight" not in small
    assert_levels_equal_extracts(net)


def test_a_padded_shortcut_cannot_become_narrower_than_what_it_pads() -> None:
    with pytest.raises(SchemeError, match="fewer than the 16 that its shortcut brings"):
        net_of(Padded(), Branch("stage2", widths={"stage3": 0.25}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AuxiliaryBranches(0), "branches=0"),
        (lambda: AuxiliaryBranches(()), "branches="),
        (lambda: AuxiliaryBranches(heads="wide"), "heads='wide'"),  # type: ignore[arg-type]
        (lambda: AuxiliaryBranches(probability=0.0), "probability"),
        (lambda: Branch("a", repeats={"b": 0}), "repeats="),
        (lambda: Branch("a", widths={"b": -1.0}), "widths="),
        (lambda: Branch("a", widths={"": 2.0}), "widths="),
        (lambda: Branch("a", {"b": 1}, head="pool"), "head='pool' has no blocks"),
    ],
)
def test_fields_out_of_range(make: Any, said: str) -> None:
    with pytest.raises(SchemeError, match=said):
        make()


@pytest.mark.parametrize(
    "scheme",
    [
        AuxiliaryBranches(),
        AuxiliaryBranches(3, heads="pool", sampling="bernoulli", probability=0.25, per="step"),
        AuxiliaryBranches((Branch("layer2"),)),
        AuxiliaryBranches((Branch("1.10", {"1e5": 3}), Branch("true", widths={"layer4": 2.0, "x": 0.5}))),
        AuxiliaryBranches((Branch("a", head="pool"), Branch("b", {"c": 1, "d": 2}))),
    ],
)
def test_schemes_are_written_and_read(scheme: AuxiliaryBranches) -> None:
    assert parse_scheme(str(scheme)) == scheme


def test_names_of_layers_are_branches() -> None:
    assert parse_scheme("auxiliary-branches{branches=layer2,layer3}") == AuxiliaryBranches(
        (Branch("layer2"), Branch("layer3"))
    )


@pytest.mark.parametrize("kind", [Projected, PreActivation])
def test_automatic_branches_fork_behind_stages(kind: type[Staged]) -> None:
    assert [level.name for level in net_of(kind()).levels] == ["branch at stage1", "branch at stage2", "full"]


@pytest.mark.slow
@examples(15)
@given(backbones(3, 2))
def test_generated_backbones_have_exact_branches(backbone: Backbone) -> None:
    model, inputs = backbone.build().eval(), backbone.example_inputs()
    try:
        net = transform(model, AuxiliaryBranches(1), inputs, loss=JointLoss())
    except SchemeError as error:
        if "too few" not in str(error) and "this network's own blocks" not in str(error):
            raise
        reject()
    assert_costs_increase(net)
    assert_levels_equal_extracts(net, inputs)
