"""Does it work on this backbone, and how well?

    python -m benchmarks.coverage --torch-pruning                        everything that docs/coverage.md shows
    python -m benchmarks.coverage --models 'timm:resnet*' 'torchvision:*' 'hf:*'
    python -m benchmarks.coverage --models list.json --torch-pruning --resume
    python -m benchmarks.coverage --schemes 'hierarchical-ensemble{depth=2}'
    python -m benchmarks.coverage --page-of out/coverage.jsonl more.jsonl

Every backbone runs in a process of its own, under a time limit, once for each scheme. What is found is appended to a
file of JSON lines (`--results`) as soon as it is known; `--resume` skips what is there. The page (`--out`) is made from
that file. Where neither `--models` nor `--schemes` is given, `SUITE` says what is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

from benchmarks.coverage import children, page
from benchmarks.coverage.results import begin, read_results, revision
from benchmarks.coverage.selection import Backbone, backbones

__all__ = ["PRUNING", "SUITE", "main", "measure", "read_results"]

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "benchmarks"
WORKER = "benchmarks.coverage.worker"
PRUNING = "torch-pruning{ratio=0.5}"
PRUNING_SECONDS = 60.0
Task: TypeAlias = tuple[Backbone, str]
WIDTHS = "nested-channels{widths=0.25,0.5,1}"
TRIANGULAR = "nested-channels{widths=0.25,0.5,1 connectivity=triangular}"
# Backbones, the schemes that they are run under, and whether Torch-Pruning runs on them too.
SUITE: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("hf:*", (WIDTHS,), False),
    (str(LISTS / "backbones.json"), (WIDTHS, "hierarchical-ensemble{depth=2}", "auxiliary-branches", TRIANGULAR), True),
    (str(LISTS / "members.json"), (WIDTHS,), False),
    ("torchvision:*", (WIDTHS,), False),
)


def main(given: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = _options(given)
    if options.page_of:
        rows = read_results(*options.page_of)
    else:
        try:
            tasks = _ask(options)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        options.results.parent.mkdir(parents=True, exist_ok=True)
        begin(options.results, keep=options.resume)
        _run(tasks, options)
        rows = read_results(options.results)
    page.write(rows, options.out, PRUNING, options.note)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
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
        default=[],
        metavar="NAME|PATTERN|FILE",
        help="by default benchmarks/backbones.json",
    )
    add("--schemes", nargs="+", default=[], metavar="SPEC", help="by default every scheme there is")
    add("--torch-pruning", action="store_true", help=f"also {PRUNING}, {PRUNING_SECONDS:.0f} s each")
    add("--seconds", type=float, default=300.0, help="time limit of each process")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--threads", type=int, default=2, help="threads of each process")
    add("--results", type=Path, default=ROOT / "out" / "coverage.jsonl")
    add("--resume", action="store_true", help="keep the results that there are, and do the rest")
    add("--out", type=Path, default=ROOT / "docs" / "coverage.md", help="the page")
    add("--json", type=Path, metavar="FILE", help="also write the rows, as one JSON list")
    add("--page-of", nargs="+", type=Path, default=[], metavar="RESULTS", help="run nothing, write the page of these")
    add("--note", default="", metavar="TEXT", help="a paragraph of the page: what was run, on what, what is left out")
    return parser.parse_args(given)


def _ask(options: argparse.Namespace) -> list[Task]:
    """Every backbone with every scheme. A child lists what is not given, so that this process stays small."""

    def listed(kinds: Sequence[str]) -> dict[str, Any]:
        found, ended = children.ask(WORKER, {"do": "list", "kinds": list(kinds)}, options.seconds)
        if "schemes" not in found:
            raise ValueError(f"backbones and schemes could not be listed: {ended.last}")
        return found

    def tasks(models: Sequence[str], schemes: Sequence[str], pruning: bool) -> Iterator[Task]:
        for one in backbones(models, lambda kinds: listed(kinds)["names"]):
            yield from ((one, scheme) for scheme in (*schemes, *([PRUNING] if pruning else [])))

    if not options.models and not options.schemes:
        return [
            task
            for models, schemes, pruned in SUITE
            for task in tasks([models], schemes, pruned and options.torch_pruning)
        ]
    models = options.models or [str(LISTS / "backbones.json")]
    return list(tasks(models, options.schemes or listed([])["schemes"], options.torch_pruning))


def _run(tasks: Iterable[Task], options: argparse.Namespace) -> None:
    done = {(row["backbone"], row["scheme"]) for row in read_results(options.results)}
    left = [(one, scheme) for one, scheme in tasks if (one.name, scheme) not in done]
    writing = Lock()

    def do(task: Task) -> None:
        row = measure(*task, seconds=options.seconds, threads=options.threads)
        with writing:
            with options.results.open("a") as results:
                results.write(json.dumps(row) + "\n")
            print(f"{row['backbone']} {row['scheme']}: {page.verdict(row)}, {row['seconds']:.0f} s", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(do, left):
            pass


def measure(backbone: Backbone, scheme: str, *, seconds: float, threads: int) -> dict[str, Any]:
    """One backbone and one scheme, or Torch-Pruning, in a process of its own."""
    task: dict[str, Any] = {"backbone": backbone.name, "input_size": backbone.input_size}
    if scheme == PRUNING:
        task["do"], limit = "prune", min(seconds, PRUNING_SECONDS)
    else:
        task["do"], task["scheme"], limit = "measure", scheme, seconds
    found, ended = children.ask(WORKER, task, limit, {"OMP_NUM_THREADS": str(threads)})
    row = {"backbone": backbone.name, "scheme": scheme, "verified": False, **found}
    row["revision"] = revision()
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


if __name__ == "__main__":
    sys.exit(main())
