"""Budgets: what they refuse, how they read, what they select."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import Budget, BudgetError, transform
from anytimeify.measure.timing import Timing
from anytimeify.runtime import latency as latencies
from anytimeify.runtime.latency import Place, example_batch
from tests.backbones import Keywords, Residual, images, residual_net


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "an empty budget: give at least one of macs, params, latency_ms, memory_bytes, or level"),
        ({"device": "cpu"}, "an empty budget"),
        ({"macs": -1}, "macs=-1: expected a positive number"),
        ({"macs": 0}, "expected a positive number"),
        ({"params": float("nan")}, "params=nan: expected a positive number"),
        ({"latency_ms": "fast"}, "latency_ms='fast': expected a positive number"),
        ({"memory_bytes": True}, "memory_bytes=True"),
        ({"level": [1]}, r"level=\[1\]: expected a level's index"),
        ({"level": True}, "level=True: expected a level's index"),
        ({"level": 1, "macs": 5}, "level=1 names the level outright: leave out macs"),
        ({"macs": 5, "batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"macs": 5, "batch_size": 2.0}, "batch_size=2.0: expected a whole number"),
        ({"macs": 5, "runtime": "tflite"}, "runtime='tflite': expected torch or onnxruntime"),
        ({"macs": 5, "threads": 0}, "threads=0: expected a whole number from 1 on"),
        ({"macs": 5, "device": "cray"}, "device='cray'"),
        ({"macs": 5, "device": ["cpu"]}, r"device=\"\['cpu'\]\""),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**fields)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=5e8", Budget(macs=5e8)),
        (" macs = 5e8 , latency_ms=12 ", Budget(macs=5e8, latency_ms=12)),
        ("latency_ms=3,device=cuda:1,batch_size=8", Budget(latency_ms=3, device="cuda:1", batch_size=8)),
        ("latency_ms=3,runtime=onnxruntime,threads=2", Budget(latency_ms=3, runtime="onnxruntime", threads=2)),
        ("level=-1", Budget(level=-1)),
        ("level=0.5", Budget(level=0.5)),
        ("level=1.0", Budget(level=1.0)),
        ("level=width 0.25", Budget(level="width 0.25")),
        ("level = depth 0.5, width 0.5, batch_size=2", Budget(level="depth 0.5, width 0.5", batch_size=2)),
        ("params=1000000,memory_bytes=1e9", Budget(params=1e6, memory_bytes=1e9)),
    ],
)
def test_budgets_as_text(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty budget"),
        ("macs", "'macs' in the budget 'macs': expected NAME=VALUE with NAME one of macs, params"),
        ("flops=3", "'flops=3' in the budget"),
        ("macs=many", "macs='many': expected a number"),
        ("macs=1,macs=2", "macs is given twice"),
        ("macs=-5", "expected a positive number"),
    ],
)
def test_text_that_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget.parse(text)


def test_a_budget_is_a_value() -> None:
    assert hash(Budget(macs=1)) == hash(Budget(macs=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(macs=1).macs = 2  # type: ignore[misc]  # refused


def test_the_best_level_within_the_budget() -> None:
    net = residual_net()
    costs = [level.cost for level in net.levels]
    for index, cost in enumerate(costs):
        assert net.select(Budget(macs=cost.macs)).index == index
        assert net.select(Budget(params=cost.params)).index == index
        assert net.select(Budget(level=index)) is net.levels[index]
        memory = cost.params * 4 + 3 * cost.activation_bytes
        assert net.select(Budget(memory_bytes=memory, batch_size=3)).index == index
    assert net.select(Budget(macs=costs[1].macs + 1)).index == 1
    assert net.select(Budget(macs=1e12)).index == 2
    assert net.select(Budget(macs=1e12, params=costs[0].params)).index == 0
    assert net.select(Budget(level=-1)).index == 2


def test_half_precision_halves_the_memory_of_parameters() -> None:
    net = residual_net()
    cost = net.levels[-1].cost
    budget = Budget(memory_bytes=cost.params * 2 + cost.activation_bytes)
    assert net.select(budget).index < 2
    assert net.half().select(budget).index == 2


def test_a_budget_below_the_cheapest_level_names_it_and_its_cost() -> None:
    net = residual_net()
    cost = net.levels[0].cost
    with pytest.raises(BudgetError) as caught:
        net.select(Budget(macs=1, params=2))
    assert str(caught.value) == (
        f"no level fits the budget macs=1,params=2: the cheapest, level 0 (width 0.25), costs "
        f"macs {cost.macs:,}, params {cost.params:,}"
    )
    with pytest.raises(BudgetError, match="there is no level 3: levels are 0"):
        net.select(Budget(level=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx"}, "runtime='onnx': expected torch or onnxruntime"),
        ({"threads": 0}, "threads=0: expected a whole number from 1 on"),
        ({"batch_size": 1.5}, "batch_size=1.5: expected a whole number"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_nothing_is_measured_where_there_is_no_such_place(options: dict[str, Any], message: str) -> None:
    """And nothing is kept under its name."""
    net = residual_net()
    with pytest.raises(BudgetError, match=message):
        net.latency(0, **options)


def test_latency_is_measured_of_the_extracts_from_the_full_level_downwards(monkeypatch: pytest.MonkeyPatch) -> None:
    net = residual_net()
    asked: list[int] = []
    times = {parameters.cost.params: time for parameters, time in zip(net.levels, (1.0, 2.0, 3.0), strict=True)}

    def prepare(extract: nn.Module, args: tuple[Tensor, ...], kwargs: object, place: Place) -> int:
        assert args[0].shape == (5, 3, 6, 6)
        assert place == Place(torch.device("cpu"), "torch", None, 5)
        return sum(parameter.numel() for parameter in extract.parameters())

    def measure(prepared: int, **options: Any) -> Timing:
        asked.append(prepared)
        return Timing(times[prepared], times[prepared], 1)

    monkeypatch.setattr(latencies, "prepare", prepare)
    monkeypatch.setattr(latencies, "measure", measure)
    assert net.select(Budget(latency_ms=2.5, batch_size=5)).index == 1
    assert asked == [net.levels[2].cost.params, net.levels[1].cost.params]
    assert net.select(Budget(latency_ms=2.5, batch_size=5)).index == 1
    assert len(asked) == 2  # kept
    assert net.select(Budget(latency_ms=9, macs=net.levels[0].cost.macs, batch_size=5)).index == 0
    assert len(asked) == 3  # levels that are too dear anyway are not measured
    with pytest.raises(BudgetError, match="latency_ms 1"):
        net.select(Budget(latency_ms=0.5, batch_size=5))
    net.double()
    net.select(Budget(latency_ms=9, batch_size=5))
    assert len(asked) == 4  # other types: measured again


def test_measured_for_real() -> None:
    net = residual_net()
    assert 0 < net.latency(0, seconds=0.05) < 1000
    assert net.select(Budget(latency_ms=1e6, batch_size=2)).index == 2
    assert net.double().latency(-1, seconds=0.05) > 0


def test_example_batches_of_any_size() -> None:
    captured = residual_net().captured
    for size in (1, 3, 9):
        (batch,) = example_batch(captured, size)
        assert batch.shape == (size, 3, 6, 6)
        assert torch.equal(batch[0], images()[0])
    scaled = {"x": torch.randn(4, 4), "scale": torch.randn(4, 1), "double": False}
    keywords = transform(Keywords(), "nested-channels{widths=0.5,1}", scaled)
    assert [tuple(x.shape) for x in example_batch(keywords.captured, 2)] == [(2, 4), (2, 1)]
    assert keywords.latency(0, batch_size=2, seconds=0.01) > 0


def test_a_static_batch_cannot_be_resized() -> None:
    net = transform(Residual(), "nested-channels{widths=0.5,1}", images(), dynamic_shapes=({},))
    assert example_batch(net.captured, 1)[0].shape[0] == 4
    assert example_batch(net.captured, 4)[0].shape[0] == 4
    with pytest.raises(BudgetError, match="captured with a static batch of 4"):
        net.select(Budget(latency_ms=5, batch_size=3))


@pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
        ),
    ],
)
def test_devices_that_compute_nothing_are_refused(device: str) -> None:
    with pytest.raises(BudgetError, match=f"latency cannot be measured on {device}"):
        residual_net().select(Budget(latency_ms=5, device=device))
