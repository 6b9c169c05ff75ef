"""Networks of other people's libraries under every scheme.

    make libraries                                          everything that docs/libraries.md shows
    make libraries LIBRARIES="--networks 'monai:*'"         one library
    make libraries LIBRARIES=--failing-first                again, beginning with what was not verified
    python -m benchmarks.libraries --page-only              the page of the results that there are

Every network runs once for each scheme in a process of its own, under limits of time and memory. Those of one network
are forks of one process, which has imported its library. What is found is appended to a file of JSON lines
(`--results`) as soon as a network is done; of several lines for one network and scheme the last one counts. The page
(`--out`) is made from all of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.coverage import children
from benchmarks.coverage.results import begin, read_results, revision
from benchmarks.libraries import page
from benchmarks.libraries.networks import NETWORKS

__all__ = ["SCHEMES", "main", "measure"]

ROOT = Path(__file__).parents[2]
WORKER = "benchmarks.libraries.worker"
# What is run, by the title of its column.
SCHEMES = {
    "torch.export": "torch.export",
    "channels": "nested-channels{widths=0.25,0.5,1}",
    "triangular": "nested-channels{widths=0.25,0.5,1 connectivity=triangular}",
    "ensemble": "hierarchical-ensemble{depth=1}",
    "branches": "auxiliary-branches",
    "depth": "nested-depth",
}


def main(given: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = _options(given)
    before = read_results(options.results)
    if not options.page_only:
        tasks = _tasks(before, options)
        if not tasks:
            print("no network has such a name", file=sys.stderr)
            return 2
        options.results.parent.mkdir(parents=True, exist_ok=True)
        begin(options.results, keep=True)
        for name, schemes in tasks.items():
            for row in measure(name, schemes, seconds=options.seconds, gib=options.gib):
                with options.results.open("a") as results:
                    results.write(json.dumps(row) + "\n")
                said = f"{name} {row['scheme']}: {row['status']}, {row['seconds']:.0f} s {row.get('why', '')}"
                print(said, flush=True)
    rows = read_results(options.results)
    page.write(rows, SCHEMES, options.out)
    print("\n".join(page.summaries(rows, SCHEMES)))
    return 0


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.libraries", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["*"], metavar="PATTERN", help="such as 'monai:*'; by default all of them")
    add("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES), help="by default all of them")
    add("--failing-first", action="store_true", help="first what the results say was not verified")
    add("--resume", action="store_true", help="leave out what there are results of")
    add("--seconds", type=float, default=120.0, help="time limit of each process")
    add("--gib", type=float, default=10.0, help="address space of each process, in GiB; 0 for no limit")
    add("--results", type=Path, default=ROOT / "out" / "libraries.jsonl")
    add("--out", type=Path, default=ROOT / "docs" / "libraries.md", help="the page")
    add("--page-only", action="store_true", help="run nothing, write the page")
    return parser.parse_args(given)


def _tasks(before: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, list[str]]:
    """The schemes to run, by network."""
    known = {(row["backbone"], row["scheme"]): row["status"] for row in before}
    tasks = [
        (name, SCHEMES[title])
        for name in NETWORKS
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.networks)
        for title in options.schemes
    ]
    if options.resume:
        tasks = [task for task in tasks if task not in known]
    if options.failing_first:
        failed = {name for name, scheme in tasks if known.get((name, scheme), "verified") != "verified"}
        tasks.sort(key=lambda task: task[0] not in failed)
    found: dict[str, list[str]] = {}
    for name, scheme in tasks:
        found.setdefault(name, []).append(scheme)
    return found


_STARTING = 240.0  # seconds that importing and building may take


def measure(name: str, schemes: Sequence[str], *, seconds: float, gib: float) -> Iterator[dict[str, Any]]:
    """One network under some schemes, each in a process of its own."""
    task = {"backbone": name, "schemes": list(schemes), "gib": gib, "seconds": seconds}
    found, whole = children.ask(WORKER, task, _STARTING + len(schemes) * seconds, {"OMP_NUM_THREADS": "1"})
    for scheme in schemes:
        result, ended = found.get(scheme, {}), children.Ended(**found.get(f"ended {scheme}", asdict(whole)))
        row = {"backbone": name, "scheme": scheme, **result, "revision": revision(), "seconds": round(ended.seconds, 1)}
        row["cpu_seconds"], row["peak_mib"] = round(ended.cpu_seconds, 1), ended.peak_mib
        step = f"in step: {result.get('step', 'start')}"
        if ended.timed_out:
            row["status"], row["why"] = "crashed", f"time limit of {seconds:.0f} s {step}"
        elif "status" not in row:
            row["status"], row["why"] = "crashed", f"the process ended with {ended.code} {step}. {ended.last}".strip()
        yield row


if __name__ == "__main__":
    sys.exit(main())
