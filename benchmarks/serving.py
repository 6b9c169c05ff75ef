"""Deadlines and a surge of requests, served from one ONNX file.

    python -m benchmarks.serving --out docs/serving_time.md --plot docs/images/serving.png
    python -m benchmarks.serving --seconds 2 --requests 20                # a try

Deadlines: at each of five, between what the cheapest and the full level take, so many requests one after the other;
which levels answer, and how many in time. Surge: requests of one sample at random times (Poisson, the same for all
three), so many a second that they are three times what the full level can serve; `Adaptive`, the full level alone and
the cheapest level alone, behind the same queue. Who is rejected counts as not in time.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from anytimeify.measure.timing import quantile
from anytimeify.runtime import Adaptive, AnytimeRunner, Overloaded
from anytimeify.serving.runner import Prediction

__all__ = ["main"]

_TITLE = """# Deadlines, and a surge

`python -m benchmarks.serving --out docs/serving_time.md --plot docs/images/serving.png`. First 200 requests at each of
five deadlines, one after the other. Then for 60 s three times as many requests as the full level can serve, whose
arrivals are a Poisson process: answered by `Adaptive`, and by one level with the same queue; rejected are those of whom
it is known that they would be answered too late. Milliseconds are those from a request's arrival to its answer.
"""
_PICTURE = "\n![Share of the requests answered within so many milliseconds](images/serving.png)\n"
NETWORK, SCHEME = "timm:resnet18", "nested-channels{widths=0.25,0.5,0.75,1}"


@dataclass
class Served:
    """What became of the requests of a surge."""

    called: str
    ages: list[float]
    levels: list[int]
    offered: int
    rejected: int


class OneLevel:
    """A runner of which one level is served, behind the same interface."""

    def __init__(self, runner: AnytimeRunner, level: int) -> None:
        self.runner, self.level = runner, level

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def predicted(self, level: int, batch: int) -> float:
        """Of every level what the one takes, so that nothing is gained by another."""
        return self.runner.predicted(self.level, batch)

    def run(self, level: int, taken: Sequence[Any], batch: int) -> Any:
        """The one level, whatever is asked."""
        return self.runner.run(self.level, taken, batch)


def main() -> None:
    """Prints two tables; writes the page and a picture where they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default=NETWORK)
    parser.add_argument("--scheme", default=SCHEME)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--requests", type=int, default=200, help="at each deadline")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each surge")
    parser.add_argument("--slo", type=float, help="milliseconds; by default eight runs of the full level")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        _export(options.network, options.scheme, options.size, path)
        runner = AnytimeRunner(path, threads=options.threads)
        x = np.random.default_rng(0).standard_normal((1, 3, options.size, options.size), np.float32)
        for _ in range(10):
            runner.warm_up()
        gc.collect()
        gc.freeze()  # a search through all that an export leaves behind stops every thread for 0.4 s
        lines = [_heading(options, runner), *_deadlines(runner, x, options.requests)]
        median = runner.levels[-1].latencies[1].median_ms
        slo = options.slo or 8 * median
        rate = 3e3 / median
        served = [
            _surge("Adaptive", runner, x[0], slo, rate, options.seconds),
            _surge("full level", OneLevel(runner, len(runner.levels) - 1), x[0], slo, rate, options.seconds),
            _surge("cheapest level", OneLevel(runner, 0), x[0], slo, rate, options.seconds),
        ]
    lines += _table(served, slo, rate)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(f"{_TITLE}\n{text}{_PICTURE if options.plot else ''}")
    if options.plot:
        _plot(served, slo, options.plot)


def _export(network: str, scheme: str, size: int, path: Path) -> None:
    import torch

    import anytimeify

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    source = anytimeify.source(network)
    net = anytimeify.transform(source, scheme, (torch.randn(2, 3, size, size),), verify=False).eval()
    net.export(path)


def _heading(options: argparse.Namespace, runner: AnytimeRunner) -> str:
    levels = ", ".join(f"{level.name} {level.latencies[1].median_ms:.1f}" for level in runner.levels)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{options.network}, {options.scheme}, {options.size} x {options.size}; onnxruntime, "
        f"threads: {options.threads}. Medians in ms: {levels}. Load of the machine before: {load}.\n"
    )


def _deadlines(runner: AnytimeRunner, x: Any, requests: int) -> list[str]:
    cheapest, full = (runner.levels[place].latencies[1].p99_ms for place in (0, -1))
    lines = ["| deadline ms | in time | in time, cheapest level alone | mean level | levels |", "|" + "---|" * 5]
    for share in (0.1, 0.325, 0.55, 0.775, 1.0):
        deadline = cheapest + share * (1.1 * full - cheapest)
        answers, alone = [], []
        for _ in range(requests):
            answers.append(runner.predict(x, deadline_ms=deadline))
            alone.append(runner.predict(x, level=0).elapsed_ms <= deadline)
        levels = [one.level.index for one in answers]
        counts = ", ".join(str(levels.count(level.index)) for level in runner.levels)
        kept = fmean(one.elapsed_ms <= deadline for one in answers)
        lines.append(f"| {deadline:.1f} | {kept:.1%} | {fmean(alone):.1%} | {fmean(levels):.2f} | {counts} |")
    return [*lines, ""]


def _surge(called: str, runner: Any, sample: Any, slo: float, rate: float, seconds: float) -> Served:
    """Requests come whether others were answered or not."""
    generator, rejected, offered = random.Random(0), 0, 0
    answers: list[tuple[float, int]] = []  # and not what holds them, which the search for garbage would look through
    level = getattr(runner, "level", None)

    def answered(future: Future[Prediction]) -> None:
        one = future.result()
        answers.append((one.elapsed_ms, one.level.index if level is None else level))

    with Adaptive(runner, slo) as server:
        start = due = time.perf_counter()
        while (due := due + generator.expovariate(rate)) < start + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            offered += 1
            try:
                server.submit(sample).add_done_callback(answered)
            except Overloaded:
                rejected += 1
    return Served(called, [age for age, _ in answers], [index for _, index in answers], offered, rejected)


def _table(served: Sequence[Served], slo: float, rate: float) -> list[str]:
    lines = [
        f"{rate:.0f} requests a second, limit {slo:.0f} ms.\n",
        "| served by | offered | rejected | median ms | p99 ms | in time | mean level |",
        "|" + "---|" * 7,
    ]
    for one in served:
        ages = one.ages or [float("nan")]
        kept = sum(age <= slo for age in one.ages) / one.offered
        times = f"{quantile(ages, 0.5):.1f} | {quantile(ages, 0.99):.1f}"
        level = fmean(one.levels or [0])
        lines.append(f"| {one.called} | {one.offered} | {one.rejected} | {times} | {kept:.1%} | {level:.2f} |")
    return lines


def _plot(served: Sequence[Served], slo: float, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for one in served:
        ages = sorted(one.ages)
        axes.plot(ages, np.arange(1, len(ages) + 1) / max(1, one.offered), label=one.called)
    axes.axvline(slo, color="grey", linestyle=":", label="limit")
    axes.set(xlabel="ms until the answer", ylabel="share of the requests", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
