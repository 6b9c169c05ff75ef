"""Runs the experiments of a paper. Apart from the command, so that other processes find it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from anytimeify.papers.experiments.results import append
from benchmarks.evidence.plan import experiments_of

__all__ = ["run_paper"]


def run_paper(paper: str, seeds: int, out: Path, until: float) -> None:
    """The experiments of a paper with so many seeds, and how long they took."""
    torch.set_num_threads(1)
    for made in experiments_of(paper):
        folder = out / made.study.name.replace("/", "-")
        if time.time() > until:
            return
        before = _lines(folder)
        started, used = time.perf_counter(), time.process_time()
        made.run(folder, seeds, said=lambda text: print(text, flush=True), shared=out / "networks")
        took = {"wall": time.perf_counter() - started, "processor": time.process_time() - used}
        if _lines(folder) > before:
            append(folder / "times.jsonl", {"seeds": seeds, **took})


def _lines(folder: Path) -> int:
    path = folder / "results.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0
