"""Every experiment of the papers at the small scale, over several seeds, and docs/evidence.md with what they show:

    python -m benchmarks.evidence --seeds 3 --processes 2

One seed of all experiments comes after the other. What is in `--out` is not trained again, so that the command may be
stopped, run for `--minutes`, for some `--papers`, or with more seeds; the page is written from what there is.
Networks that several experiments have are trained once (`--out/networks`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.evidence.page import write
from benchmarks.evidence.plan import papers
from benchmarks.evidence.running import run_paper


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so many")
    parser.add_argument("--papers", nargs="+", choices=papers(), default=papers())
    parser.add_argument("--out", type=Path, default=Path("out/evidence"), help="results; a run there goes on")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    for seeds in range(1, given.seeds + 1):
        _run(given.papers, seeds, given.out, until, given.processes)
        write(given.out, given.page)


def _run(chosen: Iterable[str], seeds: int, out: Path, until: float, processes: int) -> None:
    """Trains what these seeds lack. Papers run beside each other, the experiments of one after each other."""
    if processes == 1:
        for paper in chosen:
            run_paper(paper, seeds, out, until)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        tasks = [pool.submit(run_paper, paper, seeds, out, until) for paper in chosen]
        for task in tasks:
            task.result()


if __name__ == "__main__":
    main()
