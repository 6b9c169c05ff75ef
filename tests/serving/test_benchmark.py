"""Levels are measured in the form in which they are served, in turns with their extracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anytimeify import AnytimeModel, ArgumentError, ArgumentValueError, BudgetError, NestedChannels
from anytimeify.measure import cache
from anytimeify.measure.timing import Timing
from anytimeify.runtime import AnytimeRunner, bench
from anytimeify.runtime.latency import Place, Runtime, prepare_level
from anytimeify.serving import benchmark
from tests.backbones import residual_net


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnytimeModel, Path]:
    net, folder = residual_net().eval(), tmp_path_factory.mktemp("net")
    net.save(folder / "net.safetensors")
    net.export(folder / "net.onnx")
    return net, folder


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_saved_model(
    case: tuple[AnytimeModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    net, folder = case
    monkeypatch.setenv("ANYTIMEIFY_CACHE", str(tmp_path))
    found = bench(folder, runtime=runtime, threads=1, batch_sizes=(1, 3), seconds=0.01)
    assert [(row.name, row.batch_size) for row in found.rows] == [
        (one.name, size) for size in (1, 3) for one in net.levels
    ]
    assert found.runtime.startswith(runtime)
    assert all(row.ratio is not None and row.timing.median_ms > 0 and row.timing.runs >= 5 for row in found.rows)
    place = Place(torch.device("cpu"), runtime, 1, 1)
    assert cache.read(prepare_level(net, 1, place).key) == found.rows[1].extract  # what a budget finds


def test_a_file_a_runner_and_what_they_compute(
    case: tuple[AnytimeModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, folder = case
    seen: list[Any] = []

    def timed(calls: Any, **options: Any) -> list[Timing]:
        seen.append([call() for call in calls])
        return [Timing(float(4 - len(seen)), 5.0, 1) for _ in calls]

    monkeypatch.setattr(benchmark, "timed", timed)
    found = bench(folder / "net.onnx", against=folder, accuracies={"width 0.25": 0.1, "width 0.5": 0.2, "width 1": 0.3})
    assert [row.dominated_by for row in found.rows] == ["width 1", "width 1", None]
    for served, (alone,) in seen:
        torch.testing.assert_close(torch.from_numpy(served), torch.from_numpy(alone), rtol=1e-4, atol=1e-5)
    seen.clear()
    assert [row.extract for row in bench(folder / "net.onnx").rows] == [None] * 3
    assert all(len(calls) == 1 for calls in seen)
    seen.clear()
    bench(AnytimeRunner(net, warm_up=False), against=net, batch_sizes=(2,))
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) and len(one) == 2 for one, other in seen)
    seen.clear()
    assert bench(net, against=False).form == "AnytimeModel"
    assert all(len(calls) == 1 for calls in seen)


def test_what_cannot_be_measured(case: tuple[AnytimeModel, Path]) -> None:
    net, folder = case
    with pytest.raises(ArgumentError, match="expected a model, or a file or folder with a saved one"):
        bench(folder / "net.onnx", against=folder / "net.onnx")
    with pytest.raises(ArgumentValueError, match=r"against: level 1 \(width 0.5, .* is no level of that model"):
        bench(folder / "net.onnx", against=residual_net(NestedChannels((0.25, 1.0)), verify=False))
    with pytest.raises(ArgumentError, match="is run by backend='torch', not by onnxruntime"):
        AnytimeRunner(folder, "onnxruntime")
    with pytest.raises(ArgumentValueError, match="accuracies: 'narrow' is not the name of a level"):
        bench(net, against=False, seconds=0.0, accuracies={"narrow": 0.5})
    with pytest.raises(ArgumentValueError, match="accuracies: that of 'width 1' is 50: expected a number from 0 to 1"):
        bench(net, against=False, seconds=0.0, accuracies={"width 1": 50})
    with pytest.raises(BudgetError, match="threads=0"):
        bench(net, threads=0, seconds=0.0)
    with pytest.raises(BudgetError, match="device='abacus'"):
        bench(net, device="abacus", seconds=0.0)
    with pytest.raises(ArgumentError, match="device='abacus'"):
        AnytimeRunner(net, device="abacus")
    with pytest.raises(BudgetError, match="batch_size=0"):
        bench(net, batch_sizes=(0,))
