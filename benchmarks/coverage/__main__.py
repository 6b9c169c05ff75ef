"""Does it work on this backbone, and how well?

    python -m benchmarks.coverage                                        the list benchmarks/backbones.json
    python -m benchmarks.coverage --models 'timm:resnet*' 'torchvision:*' 'hf:*'
    python -m benchmarks.coverage --models list.json --torch-pruning --resume
    python -m benchmarks.coverage --schemes 'hierarchical-ensemble{depth=2}'
    python -m benchmarks.coverage --page-of out/coverage.jsonl more.jsonl

Every backbone runs in a process of its own, under a time limit, once for each scheme. What is found is appended to a
file of JSON lines (`--results`) as soon as it is known; `--resume` skips what is there. The page (`--out`) and the JSON
beside it are made from that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.coverage import children, page
from benchmarks.coverage.selection import Backbone, backbones

__all__ = ["PRUNING", "main", "measure", "read_results"]

ROOT = Path(__file__).parents[2]
WORKER = "benchmarks.coverage.worker"
PRUNING = "torch-pruning{ratio=0.5}"
PRUNING_SECONDS = 60.0


def main(given: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = _options(given)
    if options.page_of:
        rows = read_results(*options.page_of)
    else:
        try:
            chosen, schemes = _ask(options)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        options.results.parent.mkdir(parents=True, exist_ok=True)
        _begin(options.results, keep=options.resume)
        _run(chosen, schemes, options)
        rows = read_results(options.results)
    page.write(rows, options.out, PRUNING, options.note)
    print("\n".join(page.summaries(rows, PRUNING)))
    return 0


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--models",
        "--list",
        nargs="+",
        default=[str(ROOT / "benchmarks" / "backbones.json")],
        metavar="NAME|PATTERN|FILE",
    )
    add("--schemes", nargs="+", default=[], metavar="SPEC", help="by default every scheme there is")
    add("--torch-pruning", action="store_true", help=f"also {PRUNING}, {PRUNING_SECONDS:.0f} s each")
    add("--seconds", type=float, default=300.0, help="time limit of each process")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--threads", type=int, default=2, help="threads of each process")
    add("--results", type=Path, default=ROOT / "out" / "coverage.jsonl")
    add("--resume", action="store_true", help="keep the results that there are, and do the rest")
    add("--out", type=Path, default=ROOT / "docs" / "coverage.md", help="the page; the JSON goes beside it")
    add("--page-of", nargs="+", type=Path, default=[], metavar="RESULTS", help="run nothing, write the page of these")
    add("--note", default="", metavar="TEXT", help="a paragraph of the page: what was run, on what, what is left out")
    return parser.parse_args(given)


def _ask(options: argparse.Namespace) -> tuple[list[Backbone], list[str]]:
    """Names and schemes; a child is asked where they are not given, so that this process stays small."""

    def listed(kinds: Sequence[str]) -> dict[str, Any]:
        found, ended = children.ask(WORKER, {"do": "list", "kinds": list(kinds)}, options.seconds)
        if "schemes" not in found:
            raise ValueError(f"backbones and schemes could not be listed: {ended.last}")
        return found

    chosen = backbones(options.models, lambda kinds: listed(kinds)["names"])
    schemes = list(options.schemes or listed([])["schemes"])
    return chosen, [*schemes, *([PRUNING] if options.torch_pruning else [])]


def _run(chosen: Iterable[Backbone], schemes: Sequence[str], options: argparse.Namespace) -> None:
    done = {(row["backbone"], row["scheme"]) for row in read_results(options.results)}
    tasks = [(one, scheme) for one in chosen for scheme in schemes if (one.name, scheme) not in done]
    writing = Lock()

    def do(task: tuple[Backbone, str]) -> None:
        row = measure(*task, seconds=options.seconds, threads=options.threads)
        with writing:
            with options.results.open("a") as results:
                results.write(json.dumps(row) + "\n")
            print(f"{row['backbone']} {row['scheme']}: {page.verdict(row)}, {row['seconds']:.0f} s", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(do, tasks):
            pass


def _begin(results: Path, *, keep: bool) -> None:
    """An empty file, or the one that there is; a line that was cut off when the benchmark was stopped is ended."""
    text = results.read_text() if keep and results.exists() else ""
    results.write_text(text if not text or text.endswith("\n") else text + "\n")


def measure(backbone: Backbone, scheme: str, *, seconds: float, threads: int) -> dict[str, Any]:
    """One backbone and one scheme, or Torch-Pruning, in a process of its own."""
    task: dict[str, Any] = {"backbone": backbone.name, "input_size": backbone.input_size}
    if scheme == PRUNING:
        task["do"], limit = "prune", min(seconds, PRUNING_SECONDS)
    else:
        task["do"], task["scheme"], limit = "measure", scheme, seconds
    found, ended = children.ask(WORKER, task, limit, {"OMP_NUM_THREADS": str(threads)})
    row = {"backbone": backbone.name, "scheme": scheme, "verified": False, **found}
    row["revision"] = _revision()
    if backbone.family:
        row["family"] = backbone.family
    if backbone.listed:
        row["list"] = backbone.listed
    row["seconds"], row["cpu_seconds"] = round(ended.seconds, 2), round(ended.cpu_seconds, 2)
    row["peak_mib"] = ended.peak_mib
    if ended.timed_out:
        row["verified"] = False
        row["why"] = (
            f"time limit of {limit:.0f} s in step: {found.get('step', 'start')}, after {ended.cpu_seconds:.0f} s of CPU"
        )
    elif ended.code != 0:
        how = f"signal {-ended.code}" if ended.code < 0 else f"exit status {ended.code}"
        row["verified"] = False
        row["why"] = f"the process ended with {how} in step: {found.get('step', 'start')}. {ended.last}".strip()
    return row


@cache
def _revision() -> str:
    """What is measured, by git; a `+` says that files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def read_results(*files: Path) -> list[dict[str, Any]]:
    """Rows of results files; of several for one backbone and scheme the last one counts."""
    rows = chain.from_iterable(_rows(file) for file in files if file.exists())
    return list({(row["backbone"], row["scheme"]): row for row in rows}.values())


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut off when the benchmark was stopped
            continue


if __name__ == "__main__":
    sys.exit(main())
