"""Orders of training against loops written by hand: which levels run, what is learnt, how often parameters change."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.losses import HierarchicalMimicking, InPlaceDistillation, JointLoss
from anytimeify.taxonomy import Taxonomy
from anytimeify.train import OneAfterTheOther, Order, Sandwich, Together
from tests.processes import run_in_two_processes

WIDTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
ORDERS = (Together(), OneAfterTheOther(), OneAfterTheOther(update="accumulate"), Sandwich(), Sandwich(inplace=False))
Weights: TypeAlias = dict[str, Tensor]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.conv2, self.fc = nn.Conv2d(10, 10, 3), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.conv2(self.bn(self.conv1(x)).relu()).relu().mean((2, 3)))
        return result


class Recorder(nn.Module):
    """A wrapper that notes which levels run."""

    def __init__(self, module: AnytimeModel) -> None:
        super().__init__()
        self.module = module
        self.levels: list[int | None] = []

    def forward(self, *args: Any, level: int | None = None, **kwargs: Any) -> Any:
        self.levels.append(level)
        return self.module(*args, level=level, **kwargs)


@pytest.fixture(scope="module")
def made() -> AnytimeModel:
    torch.manual_seed(0)
    return transform(Small(), NestedChannels(WIDTHS), torch.randn(2, 3, 6, 6)).train()


@pytest.fixture
def net(made: AnytimeModel) -> AnytimeModel:
    return copy.deepcopy(made)


def batch(size: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 6, 6, generator=generator), torch.randint(4, (size,), generator=generator)


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)


def trained(net: AnytimeModel, order: Order, **options: Any) -> Weights:
    net = copy.deepcopy(net)
    order.step(net, *batch(), sgd(net), **options)
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def by_hand(net: AnytimeModel, *losses: Callable[[AnytimeModel], Tensor]) -> Weights:
    """One update for each of the losses."""
    net = copy.deepcopy(net)
    optimizer = sgd(net)
    for loss in losses:
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one | other)


def labels(net: AnytimeModel, level: int, weight: float = 1.0) -> Tensor:
    x, target = batch()
    return F.cross_entropy(net(x, level=level), target) * weight


def test_all_levels_together(net: AnytimeModel) -> None:
    x, target = batch()
    expected = by_hand(net, lambda net: net.loss(net(x), target))
    assert same(trained(net, Together()), expected)
    other = InPlaceDistillation()
    assert same(trained(net, Together(), loss=other), by_hand(net, lambda net: other(net(x), target)))


def test_one_after_the_other_is_an_update_for_every_level(net: AnytimeModel) -> None:
    expected = by_hand(net, *(partial(labels, level=level) for level in range(5)))
    result = trained(net, OneAfterTheOther())
    assert same(result, expected)
    assert not same(result, trained(net, Together()))


def test_accumulated_gradients_are_those_of_all_levels_together(net: AnytimeModel) -> None:
    net.loss = JointLoss((0.5, 0.1, 2.0, 1.0, 1.0), reduction="mean")
    assert same(trained(net, OneAfterTheOther(update="accumulate")), trained(net, Together()))


def test_the_weights_of_the_levels_hold(net: AnytimeModel) -> None:
    weights = (0.5, 0.1, 2.0, 1.0, 0.2)
    expected = by_hand(net, *(partial(labels, level=level, weight=weights[level] / 5) for level in range(5)))
    assert same(trained(net, OneAfterTheOther(), loss=JointLoss(weights, reduction="mean")), expected)


def test_every_level_may_have_its_own_samples(net: AnytimeModel) -> None:
    x, target = batch()
    parts = [slice(start, start + 2) for start in range(0, 10, 2)]
    losses = [
        partial(lambda net, level, at: F.cross_entropy(net(x[at], level=level), target[at]), level=level, at=at)
        for level, at in enumerate(parts)
    ]
    assert same(trained(net, OneAfterTheOther(same_batch=False)), by_hand(net, *losses))
    with pytest.raises(ValueError, match="a batch of 4 cannot be cut into parts for 5 levels"):
        OneAfterTheOther(same_batch=False).step(net, *batch(4), sgd(net))


def test_the_sandwich_with_in_place_distillation(net: AnytimeModel) -> None:
    x, target = batch()
    levels = Sandwich().draw(5, generator=torch.Generator().manual_seed(3))

    def loss(net: AnytimeModel) -> Tensor:
        full: Tensor = net(x, level=4)
        soft = full.detach().softmax(1)
        students = (net(x, level=level).log_softmax(1) for level in levels[1:])
        distilled = [(soft * (soft.log() - student)).sum(1).mean() for student in students]
        return F.cross_entropy(full, target) + torch.stack(distilled).sum()

    result = trained(net, Sandwich(), generator=torch.Generator().manual_seed(3))
    assert same(result, by_hand(net, loss))
    untouched = {0, 1, 2, 3} - set(levels)
    assert untouched
    for level in range(4):
        name = f"anytime.{level}.fc.weight"
        assert torch.equal(result[name], net.get_parameter(name)) == (level in untouched)


def test_the_sandwich_with_labels(net: AnytimeModel) -> None:
    levels = Sandwich().draw(5, generator=torch.Generator().manual_seed(3))
    expected = by_hand(net, lambda net: sum((labels(net, level) for level in levels[1:]), labels(net, levels[0])))
    result = trained(net, Sandwich(inplace=False), generator=torch.Generator().manual_seed(3))
    assert same(result, expected)


def test_what_a_sandwich_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [Sandwich(random=2).draw(8, generator=generator) for _ in range(200)]
    assert all(levels[:2] == (7, 0) for levels in draws)
    assert all(list(levels[2:]) == sorted({*levels[2:]} - {0, 7}) and len(levels) == 4 for levels in draws)
    counts = torch.bincount(torch.tensor([level for levels in draws for level in levels[2:]]), minlength=8)
    assert min(counts[1:7]) > 40  # about 67 of 200
    generator.manual_seed(0)
    assert draws == [Sandwich(random=2).draw(8, generator=generator) for _ in range(200)]
    assert Sandwich(random=9).draw(4) == (3, 0, 1, 2)
    assert Sandwich(random=0).draw(4) == (3, 0)
    assert [Sandwich().draw(count) for count in (1, 2)] == [(0,), (1, 0)]
    assert set(Sandwich(random=0).draw(4, full=2)) == {0, 2}


def test_the_global_generator_draws_without_another(net: AnytimeModel) -> None:
    def drawn(seed: int) -> list[int | None]:
        recorder = Recorder(net)
        torch.manual_seed(seed)
        Sandwich(random=1).step(recorder, *batch(), sgd(net))
        return recorder.levels

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(8)}) == 3


@pytest.mark.parametrize(
    ("order", "levels", "steps"),
    [
        (Together(), [None], 1),
        (OneAfterTheOther(), [0, 1, 2, 3, 4], 5),
        (OneAfterTheOther(update="accumulate"), [0, 1, 2, 3, 4], 1),
        (Sandwich(random=0), [4, 0], 1),
        (Sandwich(random=3), [4, 0, 1, 2, 3], 1),
        (Sandwich(random=3, inplace=False), [4, 0, 1, 2, 3], 1),
    ],
)
def test_which_levels_run_and_how_often_parameters_change(
    net: AnytimeModel, order: Order, levels: list[int | None], steps: int
) -> None:
    recorder, optimizer = Recorder(net), sgd(net)
    events: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: events.append("update"))

    def backward(loss: Tensor) -> None:
        events.append("backward")
        loss.backward()

    terms = order.step(
        recorder,
        *batch(),
        optimizer,
        before_update=lambda: events.append("clip"),
        backward=backward,
    )
    assert recorder.levels == levels
    assert events.count("backward") == len(levels)
    assert "".join(event[0] for event in events if event != "backward") == "cu" * steps
    assert events[-1] == "update"
    assert {name.partition("/")[0] for name in terms} == {
        f"level{index}" for index in range(5) if None in levels or index in levels
    }
    assert not any(term.requires_grad for term in terms.values())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_gradients_can_be_clipped_and_scaled(net: AnytimeModel, order: Order) -> None:
    norms: list[Tensor] = []

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        norms.append(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))

    order.step(net, *batch(), sgd(net), before_update=clip, backward=lambda loss: (loss * 1024).backward())
    assert norms
    assert all(float(norm) == pytest.approx(0.01, rel=1e-3) for norm in norms)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_forward_passes_may_be_in_lower_precision(net: AnytimeModel, order: Order) -> None:
    seen: list[torch.dtype] = []
    net.get_submodule("fc").register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    terms = order.step(net, *batch(), sgd(net), autocast=partial(torch.autocast, "cpu", torch.bfloat16))
    assert set(seen) <= {torch.bfloat16}
    assert all(term.isfinite() for term in terms.values())
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_inputs_may_be_positional_or_named(net: AnytimeModel, order: Order) -> None:
    x, target = batch()
    results = []
    for inputs in (x, (x,), [x], {"x": x}):
        one = copy.deepcopy(net)
        terms = order.step(one, inputs, target, sgd(one), generator=torch.Generator().manual_seed(0))
        results.append({name: round(float(term), 5) for name, term in terms.items()})
    assert results.count(results[0]) == 4


def test_samples_of_several_inputs_are_shared_out() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(x).relu() * scale)
            return result

    inputs = (torch.randn(6, 3), torch.rand(6, 1))
    net = transform(Named(), NestedChannels((0.25, 0.5, 1.0)), inputs)
    order, target = OneAfterTheOther(same_batch=False), torch.arange(6) % 4
    by_place, by_name = copy.deepcopy(net), copy.deepcopy(net)
    order.step(by_place, inputs, target, sgd(by_place))
    order.step(by_name, dict(zip(("x", "scale"), inputs, strict=True)), target, sgd(by_name))
    assert same(dict(by_place.named_parameters()), dict(by_name.named_parameters()))


def test_parts_are_for_loops_of_ones_own(net: AnytimeModel) -> None:
    optimizer = sgd(net)
    parts = OneAfterTheOther().parts(net, *batch())
    first = next(parts)
    assert list(first.terms) == ["level0/cross_entropy"]
    assert first.update
    assert torch.equal(first.loss, first.terms["level0/cross_entropy"])
    first.loss.backward()
    optimizer.step()
    second = next(parts)  # with the new parameters
    torch.testing.assert_close(second.loss, labels(net, 1))


def test_compiled_networks_can_be_trained(net: AnytimeModel) -> None:
    compiled: Any = torch.compile(net, backend="eager")
    assert same(trained(net, Sandwich(random=3)), trained_as(compiled, net))


def trained_as(wrapped: nn.Module, net: AnytimeModel) -> Weights:
    Sandwich(random=3).step(wrapped, *batch(), sgd(net))
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def test_losses_that_are_no_sums_over_levels_are_refused(net: AnytimeModel) -> None:
    for order in (OneAfterTheOther(), Sandwich(inplace=False)):
        with pytest.raises(TypeError, match=r"HierarchicalMimicking is no sum over levels.*Together\(\)"):
            order.step(net, *batch(), sgd(net), loss=HierarchicalMimicking())
    Sandwich().step(net, *batch(), sgd(net), loss=HierarchicalMimicking())  # not read
    Together().step(net, *batch(), sgd(net), loss=HierarchicalMimicking())


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear is no AnytimeModel, nor a wrapper of one"):
        Together().step(nn.Linear(2, 2), torch.randn(2, 2), torch.zeros(2), None)
    with pytest.raises(ValueError, match="update is 'never'"):
        OneAfterTheOther(update="never")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="random is -1"):
        Sandwich(random=-1)
    with pytest.raises(ValueError, match="temperature is 0"):
        Sandwich(temperature=0)


def test_a_loss_may_be_one_number(net: AnytimeModel) -> None:
    class Last(nn.Module):
        def forward(self, outputs: Any, target: Tensor) -> Tensor:
            return F.cross_entropy(outputs.levels[-1], target)

    x, target = batch()
    assert same(trained(net, Together(), loss=Last()), by_hand(net, lambda net: labels(net, 4)))
    assert list(Together().step(net, x, target, sgd(net), loss=Last())) == ["loss"]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_labels_of_several_granularities(order: Order) -> None:
    taxonomy = Taxonomy(((0, 1, 0, 1),))
    net = transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 3, 6, 6), taxonomy=taxonomy).train()
    terms = order.step(net, *batch(), sgd(net))
    assert sorted(name.partition("/level")[0] for name in terms) == ["coarse", "coarse", "fine", "fine"]
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("order", [OneAfterTheOther(), OneAfterTheOther(update="accumulate"), Sandwich(inplace=False)])
def test_levels_without_an_objective(order: Order) -> None:
    net = transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 3, 6, 6), consensus="average").train()
    optimizer, before = sgd(net), {name: one.detach().clone() for name, one in net.named_parameters()}
    updates: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: updates.append("update"))
    assert sorted(order.step(net, *batch(), optimizer)) == ["level0/cross_entropy", "level1/cross_entropy"]
    assert len(updates) == (2 if order == OneAfterTheOther() else 1)
    assert not same(before, dict(net.named_parameters()))


def test_what_the_full_level_does_not_predict_it_cannot_teach() -> None:
    taxonomy = Taxonomy(((0, 1, 0, 1),), heads=(("fine", "coarse"), ("fine",)))
    net = transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 3, 6, 6), taxonomy=taxonomy).train()
    with pytest.raises(ValueError, match="level 0 predicts 'coarse', and the full level does not"):
        Sandwich().step(net, *batch(), sgd(net))
    assert len(Sandwich(inplace=False).step(net, *batch(), sgd(net))) == 3


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_orders_are_data(order: Any) -> None:
    assert json.loads(json.dumps(asdict(order)))["name"] == order.name
    assert type(order)(**{key: value for key, value in asdict(order).items() if key != "name"}) == order
    with pytest.raises(FrozenInstanceError):
        order.name = "another"


@pytest.fixture
def alone() -> Iterator[None]:
    """Accelerate keeps one precision for the whole process: the tests that follow may want another."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.usefixtures("alone")
def test_accelerate(made: AnytimeModel, order: Order) -> None:
    """Its gradient accumulation, clipping and lower precision, around a step as it is."""
    accelerate: Any = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    net = copy.deepcopy(made)
    wrapped, optimizer = accelerator.prepare(net, sgd(net))
    moved = []
    for _ in range(2):
        before = net.get_parameter("fc.weight").detach().clone()
        with accelerator.accumulate(wrapped):
            order.step(
                *(wrapped, *batch(), optimizer),
                backward=accelerator.backward,
                before_update=lambda: accelerator.sync_gradients and accelerator.clip_grad_norm_(net.parameters(), 1.0),
            )
        moved.append(not torch.equal(before, net.get_parameter("fc.weight")))
    assert moved == [False, True]


DISTRIBUTED = """
from torch.nn.parallel import DistributedDataParallel
from anytimeify import NestedChannels, transform
from anytimeify.train import OneAfterTheOther, Sandwich
from tests.train.test_orders import Small

torch.manual_seed(0)
net = transform(Small(), NestedChannels((0.2, 0.4, 0.6, 0.8, 1.0)), torch.randn(2, 3, 6, 6), verify=False).train()
model = DistributedDataParallel(net, find_unused_parameters=True)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
generator = torch.Generator().manual_seed(5)
torch.manual_seed(rank)
for order in (Sandwich(random=1), OneAfterTheOther(), OneAfterTheOther(update="accumulate"), Sandwich(random=1)):
    order.step(model, torch.randn(6, 3, 6, 6), torch.arange(6) % 4, optimizer, generator=generator)
mine = torch.cat([p.detach().flatten() for p in net.parameters()])
"""


@pytest.mark.distributed
def test_processes_stay_alike(tmp_path: Path) -> None:
    run_in_two_processes(DISTRIBUTED, tmp_path)
