"""Staged execution: every exit is its level, samples leave on their own, and what nobody needs is not run."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import (
    AnytimeModel,
    ArgumentError,
    AuxiliaryBranches,
    Branch,
    BudgetError,
    Confidence,
    NestedChannels,
    transform,
)
from tests.backbones import Keywords
from tests.passes import branches
from tests.passes.ensembles import Chain
from tests.printing import calls as printed
from tests.printing import lines
from tests.staged.nets import (
    KINDS,
    Chosen,
    Lengths,
    TokensFirst,
    Windows,
    calls,
    chosen,
    close,
    exits_of,
    forked,
    images,
    net_with_exits,
)


@pytest.fixture(scope="module", params=KINDS)
def net(request: pytest.FixtureRequest) -> AnytimeModel:
    return net_with_exits(request.param)


@pytest.mark.parametrize("fold", [False, True])
def test_every_exit_is_its_level(net: AnytimeModel, fold: bool) -> None:
    (x,), staged = images(3), net.staged(fold=fold)
    found = list(staged.stream(x))
    assert [level for level, _ in found] == list(net.levels) == list(staged.levels)
    for (_, prediction), expected in zip(found, exits_of(net, x), strict=True):
        assert close(prediction, expected)
    norms = [module for module in staged.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not norms if fold else norms


def test_without_a_policy_all_samples_go_to_the_end(net: AnytimeModel) -> None:
    (x,) = images(3)
    prediction, exits = net.staged()(x)
    assert close(prediction, exits_of(net, x)[-1])
    assert exits.tolist() == [2, 2, 2]


@pytest.mark.parametrize("exits", [(0,), (2,), (1, 0, 2, 0, 1), (0, 0, 2), (1, 1), (2, 0), ()])
def test_every_sample_gets_the_prediction_of_its_own_exit(net: AnytimeModel, exits: tuple[int, ...]) -> None:
    (x,) = images(max(1, len(exits)))
    x = x[: len(exits)]
    staged = net.staged()
    found = staged(x, policy=chosen(*exits))
    assert found.exits.tolist() == list(exits)
    expected = exits_of(net, x)
    assert found.prediction.shape == expected[0].shape
    for row, exit in enumerate(exits):
        assert close(found.prediction[row], expected[exit][row])


def test_stages_are_run_for_the_samples_that_need_them_and_no_others() -> None:
    (x,), staged = images(5), net_with_exits().staged()
    seen = calls(staged.stages)
    staged(x, policy=chosen(1, 0, 2, 0, 1))
    staged(x, policy=chosen(0, 0, 0, 0, 0))
    staged(x, policy=lambda predictions, exit: exit == 1)
    assert seen == [[5, 5, 5], [3, 5], [1]]


@pytest.mark.parametrize("exits", [(0,), (1,), (2,), (0, 0, 0), (2, 0, 1)])
def test_what_is_computed_is_what_the_exits_cost(net: AnytimeModel, exits: tuple[int, ...]) -> None:
    (x,), staged = images(len(exits)), net.staged()
    with FlopCounterMode(display=False) as counter:
        staged(x, policy=chosen(*exits))
    assert counter.get_total_flops() == 2 * sum(staged.macs[exit] for exit in exits)


def test_costs_count_the_heads_on_the_way() -> None:
    net = net_with_exits("branch")
    staged = net.staged()
    assert staged.macs[0] == net.levels[0].cost.macs
    assert staged.macs[2] > net.levels[2].cost.macs
    assert net.staged(levels=[2]).macs == (net.levels[2].cost.macs,)


def test_levels_may_be_chosen() -> None:
    net, (x,) = net_with_exits(), images()
    staged = net.staged(levels=[-1, net.levels[0]])
    assert [level.index for level in staged.levels] == [0, 2]
    expected = exits_of(net, x)
    assert close(staged(x, policy=chosen(0, 1)).prediction, torch.stack([expected[0][0], expected[2][1]]))
    with pytest.raises(BudgetError, match="there is no level 3"):
        net.staged(levels=[3])
    with pytest.raises(BudgetError, match=r"levels=\[\]: expected some of 0, 1, 2"):
        net.staged(levels=[])


def test_levels_for_training_only_are_left_out() -> None:
    wide = AuxiliaryBranches((Branch("stage1", head="pool"), Branch("stage2", widths={"stage3": 3.0})))
    net = transform(branches.Projected(), wide, branches.images()).eval()
    assert [level.training_only for level in net.levels] == [False, True, False]
    assert [level.index for level in net.staged().levels] == [0, 2]
    with pytest.raises(BudgetError, match="expected some of 0, 2"):
        net.staged(levels=[1])


def test_a_network_whose_levels_share_nothing_is_staged_from_its_inputs() -> None:
    net = transform(Chain(), NestedChannels(widths=(0.5, 1.0)), images()).eval()
    (x,), staged = images(3), net.staged()
    assert [stage.reads for stage in staged.chain.stages] == [("x",), ("x",)]
    assert staged.macs == (net.levels[0].cost.macs, net.levels[0].cost.macs + net.levels[1].cost.macs)
    found, expected = staged(x, policy=chosen(1, 0, 1)), exits_of(net, x)
    assert close(found.prediction, torch.stack([expected[1][0], expected[0][1], expected[1][2]]))


# Features.


def test_a_feature_whose_first_dimension_is_not_the_samples() -> None:
    net, (x,) = forked(TokensFirst(), "stem"), images(4)
    staged = net.staged()
    (feature, *_) = staged.chain.read_later(0)
    assert staged.chain.sample_dim(feature) == 1
    found, expected = staged(x, policy=chosen(1, 0, 1, 0)), exits_of(net, x)
    assert close(found.prediction, torch.where(found.exits[:, None] == 0, expected[0], expected[1]))


def test_where_samples_cannot_be_told_apart_the_whole_batch_goes_on() -> None:
    net, (x,) = forked(Windows(), "first"), images(3)
    staged = net.staged()
    assert not staged.chain.separable
    seen = calls(staged.stages)
    found, expected = staged(x, policy=Chosen((1, 0, 1), whole=True)), exits_of(net, x)
    assert found.exits.tolist() == [1, 0, 1]
    assert close(found.prediction, torch.where(found.exits[:, None] == 0, expected[0], expected[1]))
    assert staged(x, policy=Chosen((0, 0, 0), whole=True)).exits.tolist() == [0, 0, 0]
    assert [len(runs) for runs in seen] == [2, 1]


def test_whole_batches_keep_what_left_before() -> None:
    (x,) = images(3)
    net = transform(Chain(), KINDS["pool"], images(3), dynamic_shapes={}).eval()
    staged = net.staged()
    assert not staged.chain.separable  # the batch has a fixed size
    found, expected = staged(x, policy=Chosen((1, 0, 2), whole=True)), exits_of(net, x)
    assert found.exits.tolist() == [1, 0, 2]
    assert close(found.prediction, torch.stack([expected[exit][row] for row, exit in enumerate((1, 0, 2))]))


def test_sizes_are_read_where_they_are_needed_and_never_handed_on() -> None:
    net, (x,) = forked(Lengths(), "stem"), images(4)
    staged = net.staged()
    assert staged.chain.stages[1].reads == staged.chain.stages[0].gives  # neither the input nor a number
    found, expected = staged(x, policy=chosen(1, 0, 1, 0)), exits_of(net, x)
    assert close(found.prediction, torch.where(found.exits[:, None] == 0, expected[0], expected[1]))


def test_leaving_samples_out_keeps_the_memory_format() -> None:
    (x,), staged = images(3), net_with_exits().staged()
    staged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations do not know it
    formats: list[bool] = []
    staged.stages[1].register_forward_pre_hook(
        lambda _, values: formats.append(values[0].is_contiguous(memory_format=torch.channels_last))
    )
    staged(x.to(memory_format=torch.channels_last), policy=chosen(0, 2, 2))
    assert formats == [True]


def test_it_is_called_like_the_backbone() -> None:
    x, scale = torch.randn(3, 4), torch.randn(3, 1)
    net = transform(Keywords(), "nested-channels{widths=0.5,1}", {"x": x, "scale": scale}).eval()
    staged = net.staged()
    found = staged(x, scale=scale, policy=chosen(0, 1, 0))
    expected = [net(x, scale=scale, level=level) for level in net.levels]
    assert close(found.prediction, torch.stack([expected[0][0], expected[1][1], expected[0][2]]).detach())
    with pytest.raises(ArgumentError, match="input 'scale' is missing"):
        staged(x)


# Policies, as the network asks them.


def test_the_policy_of_the_network_is_asked_unless_another_is_given() -> None:
    (x,), staged = images(), net_with_exits().staged()
    staged.policy = Confidence(threshold=0.0)
    assert staged(x).exits.tolist() == [0, 0]
    assert staged(x, policy=Confidence(threshold=2.0)).exits.tolist() == [2, 2]


def test_a_policy_may_decide_for_all_samples_and_is_not_asked_at_the_end() -> None:
    (x,), staged = images(), net_with_exits().staged()
    asked = []

    def never(predictions: Sequence[Tensor], exit: int) -> bool:
        asked.append(exit)
        return False

    assert staged(x, policy=never).exits.tolist() == [2, 2]
    assert asked == [0, 1]
    assert staged(x, policy=lambda predictions, exit: True).exits.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(3, dtype=torch.bool), torch.zeros((), dtype=torch.bool)])
def test_what_a_policy_gives_is_checked(wrong: Tensor) -> None:
    (x,), staged = images(), net_with_exits().staged()
    with pytest.raises(ArgumentError, match="at exit 0: expected one truth value for each of 2 samples"):
        staged(x, policy=lambda predictions, exit: wrong)


# The module.


def test_it_owns_its_tensors_and_asks_for_no_gradient() -> None:
    net, (x,) = net_with_exits(), images()
    staged = net.staged(fold=False)
    before = staged(x).prediction
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.equal(staged(x).prediction, before)
    assert not any(parameter.requires_grad for parameter in staged.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in staged.train().modules())


def test_printed() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    net = transform(backbone, AuxiliaryBranches((Branch("0", head="pool"),)), x).eval()
    assert printed(net.rewritten.program) == lines("""
        m0 = linear(input_op, m0_weight, m0_bias)
        m1 = tanh(m0)
        m2 = linear(m1, m2_weight, m2_bias)
        level0_pooled = linear(m0, anytime_0_pooled_weight, anytime_0_pooled_bias)
        return level0_pooled, m2
    """)
    first, last = (stage for stage in net.staged().stages if isinstance(stage, fx.GraphModule))
    assert printed(first) == ["m0 = 0(input_op)", "level0_pooled = pooled(m0)", "return m0, level0_pooled"]
    assert printed(last) == ["m1 = 1(m0)", "m2 = 2(m1)", "return m2"]
    m0, low = first(x)
    torch.testing.assert_close((low, *last(m0)), tuple(net(x).levels))


def test_private_parameters_have_the_names_of_the_backbone() -> None:
    names = {name for name, _ in net_with_exits("branch").staged(fold=False).stages[1].named_parameters()}
    assert {"stage2.norm.weight", "stage3.norm.weight", "head.weight"} <= names
    assert not any(name.startswith("anytime") for name in names)


def test_it_can_be_copied_and_pickled() -> None:
    (x,), staged = images(3), net_with_exits().staged()
    staged.policy = Confidence(threshold=0.3)
    for other in (copy.deepcopy(staged), pickle.loads(pickle.dumps(staged))):
        assert close(other(x).prediction, staged(x).prediction)


def test_stages_can_be_compiled() -> None:
    (x,), staged = images(5), net_with_exits().staged()
    expected = staged(x, policy=chosen(1, 0, 2, 0, 1))
    for stage in staged.stages:
        stage.compile(backend="eager", dynamic=True)
    torch.testing.assert_close(staged(x, policy=chosen(1, 0, 2, 0, 1)), expected)


def test_stages_run_where_anytimeify_was_never_imported(tmp_path: Path) -> None:
    (x,), staged = images(), net_with_exits().staged()
    torch.save((list(staged.stages), x, staged(x).prediction), tmp_path / "stages.pt")
    script = textwrap.dedent(
        """
        import sys, torch
        stages, x, expected = torch.load("stages.pt", weights_only=False)
        values = (x,)
        for stage in stages:
            *values, prediction = stage(*values)
        torch.testing.assert_close(prediction, expected)
        assert not any(name.split(".")[0] in ("anytimeify", "passes") for name in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
