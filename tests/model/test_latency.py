"""Latency of extracts, in torch and in onnxruntime, kept on the disk between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anytimeify import Budget, BudgetError
from anytimeify.measure import timing
from anytimeify.measure.timing import Timing
from anytimeify.runtime import latency as latencies
from tests.backbones import residual_net


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """A cache that is empty, and what is measured."""
    monkeypatch.setenv("ANYTIMEIFY_CACHE", str(tmp_path))
    found: list[Timing] = []
    timed = timing.timed

    def note(*args: Any, **options: Any) -> list[Timing]:
        found.extend(timed(*args, **options))
        return found[-1:]

    monkeypatch.setattr(latencies, "timed", note)
    return found


def test_another_model_of_the_same_graph_is_not_measured_again(measured: list[Timing]) -> None:
    first = residual_net().latency(1, seconds=0.01)
    other = residual_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert other.latency(1, seconds=0.01) == first
    assert len(measured) == 1
    other.latency(0, seconds=0.01)
    other.latency(1, seconds=0.01, batch_size=2)
    other.latency(1, seconds=0.01, threads=2 if torch.get_num_threads() == 1 else 1)
    other.double().latency(1, seconds=0.01)
    assert len(measured) == 5


def test_without_the_cache(measured: list[Timing], tmp_path: Path) -> None:
    net = residual_net()
    assert net.latency(0, seconds=0.01, cached=False) > 0
    assert net.latency(0, seconds=0.01, cached=False) > 0
    assert len(measured) == 2
    assert list(tmp_path.iterdir()) == []


def test_threads_are_those_of_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def timed(calls: Any, **options: Any) -> list[Timing]:
        seen.append(torch.get_num_threads())
        return [Timing(1.0, 1.0, 1)]

    monkeypatch.setattr(latencies, "timed", timed)
    net = residual_net()
    net.select(Budget(latency_ms=2, threads=before + 1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_in_onnxruntime(measured: list[Timing]) -> None:
    pytest.importorskip("onnxruntime")
    net = residual_net()
    budget = Budget(latency_ms=1e6, runtime="onnxruntime", threads=1, batch_size=2)
    assert net.select(budget).index == 2
    assert net.select(budget).index == 2
    assert residual_net().select(budget).index == 2
    assert len(measured) == 1
    with pytest.raises(BudgetError, match="latency cannot be measured on meta: device='meta'"):
        net.select(Budget(latency_ms=1, runtime="onnxruntime", device="meta"))
