"""Whether `bench` says what a stopwatch says: its milliseconds against levels and extracts that are timed by hand.

    python -m benchmarks.bench_by_hand

By hand: the extract is exported by `torch.onnx.export` and run in a session of its own, or called in torch; the model
is exported and its file run in a session, or called with `level=`. Rounds of both take turns; the table has medians
over rounds of the medians in a round.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import anytimeify
from anytimeify.measure.timing import timed
from anytimeify.runtime import bench
from anytimeify.runtime.model import AnytimeModel

Call = Callable[[], object]
FILE = "net.onnx"
SCHEME = "nested-channels{widths=0.25,0.5,1}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="timm:resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="that one level is measured in a round")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    example = torch.randn(2, 3, options.size, options.size)
    net = anytimeify.transform(anytimeify.source(options.network), SCHEME, (example,), verify=False).eval()
    print(
        "| runtime | level | alone: `bench` | by hand | ratio | served: `bench` | by hand | ratio: `bench` | by hand |"
    )
    print("|---|---|" + "--:|" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for runtime in ("onnxruntime", "torch"):
            calls = (_in_onnxruntime if runtime == "onnxruntime" else _in_torch)(net, example[:1], Path(folder))
            served = Path(folder, FILE) if runtime == "onnxruntime" else net
            _rows(net, served, runtime, calls, options.rounds, options.seconds)


def _rows(
    net: AnytimeModel, served: Any, runtime: Any, calls: Sequence[tuple[Call, Call]], rounds: int, seconds: float
) -> None:
    """A line for every level. `served`: what `bench` is given; `calls`: of each level as it is served, and alone."""
    found: list[list[tuple[float, float, float, float]]] = [[] for _ in calls]
    for _ in range(rounds):
        measured = bench(served, runtime=runtime, threads=1, against=net, seconds=seconds, cached=False).rows
        for place, (row, pair) in enumerate(zip(measured, calls, strict=True)):
            assert row.extract is not None
            own, alone = timed(pair, seconds=seconds)
            found[place].append((row.timing.median_ms, row.extract.median_ms, own.median_ms, alone.median_ms))
    for level, numbers in zip(net.levels, found, strict=True):
        own, alone, own_by_hand, alone_by_hand = (median(column) for column in zip(*numbers, strict=True))
        ratios = [median(one[0] / one[1] for one in numbers), median(one[2] / one[3] for one in numbers)]
        same = median(one[1] / one[3] for one in numbers)
        cells = [f"{alone:.2f}", f"{alone_by_hand:.2f}", f"{same:.3f}", f"{own:.2f}", f"{own_by_hand:.2f}"]
        print(f"| {runtime} | {level.name} | {' | '.join(cells)} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)


def _in_torch(net: AnytimeModel, example: torch.Tensor, folder: Path) -> list[tuple[Call, Call]]:
    def call(function: Callable[..., object], **options: Any) -> object:
        with torch.inference_mode():
            return function(example, **options)

    extracts = [net.extract(level.index).eval() for level in net.levels]
    return [(partial(call, net, level=place), partial(call, one)) for place, one in enumerate(extracts)]


def _in_onnxruntime(net: AnytimeModel, example: torch.Tensor, folder: Path) -> list[tuple[Call, Call]]:
    net.export(folder / FILE)
    together = _session(folder / FILE)
    name, level = (entry.name for entry in together.get_inputs())
    result: list[tuple[Call, Call]] = []
    for place, one in enumerate(net.levels):
        file = folder / f"{place}.onnx"
        torch.onnx.export(net.extract(one.index).eval(), (example,), str(file), dynamo=True, verbose=False)
        alone = _session(file)
        feed = {alone.get_inputs()[0].name: example.numpy()}
        both = {name: example.numpy(), level: np.array(place)}
        result.append((partial(together.run, None, both), partial(alone.run, None, feed)))
    return result


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
