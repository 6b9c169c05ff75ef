"""`python -m tests.fuzz LOADER --count 10000 --seed 0`: searches, and prints the figures and everything that is wrong.

`--only NUMBER` repeats one case and keeps its file. `--crafted` tries the files that were made by hand instead, of all
loaders if none is named. After every 1,000 cases it says on the standard error how far it is; `--start NUMBER` goes on
from there. Exit status 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.fuzz import misbehaving
from tests.fuzz.loader import Loader, loaders
from tests.fuzz.sandbox import FINE, Verdict, judge, search

__all__ = ["main"]

PROGRESS = 1000  # cases from one line of progress to the next


def main() -> int:
    """Returns the exit status."""
    known = {**loaders(), "misbehaving": misbehaving.LOADER}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("loader", nargs="*", metavar="LOADER", help=f"one of {', '.join(known)}")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case, whose file is kept")
    parser.add_argument("--crafted", action="store_true", help="the files that were made by hand")
    given = parser.parse_args()
    if unknown := set(given.loader) - known.keys():
        parser.error(f"there is no loader {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    wrong = 0
    for name in given.loader or loaders():
        folder = Path(tempfile.mkdtemp())
        numbers = range(given.start, given.start + given.count) if given.only is None else [given.only]
        verdicts = judge(known[name], folder) if given.crafted else search(known[name], folder, numbers, given.seed)
        wrong += _report(known[name], verdicts, given.seed, everything=given.only is not None or given.crafted)
        if given.only is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"the file is in {folder}/cases")
    return 1 if wrong else 0


def _report(loader: Loader, verdicts: Iterator[Verdict], seed: int, *, everything: bool) -> int:
    """Prints verdicts as they come, figures at the end, and returns how many are wrong."""
    kinds: collections.Counter[str] = collections.Counter()
    slowest, start, crafted = 0.0, time.perf_counter(), list(loader.crafted)
    for verdict in verdicts:
        kinds[verdict.kind] += 1
        slowest = max(slowest, verdict.seconds)
        if verdict.kind not in FINE or everything:
            what = f"{verdict.what} ({crafted[verdict.number]})" if "made by hand" in verdict.what else verdict.what
            text = f"{verdict.number} {verdict.kind}: {what[:300]}\n    {verdict.detail}"
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
        if (done := kinds.total()) % PROGRESS == 0:
            print(f"{loader.name}: {done} cases, {dict(kinds)}", file=sys.stderr, flush=True)
    wrong = sum(count for kind, count in kinds.items() if kind not in FINE)
    figures = {"loader": loader.name, "seed": seed, "cases": kinds.total(), **kinds, "wrong": wrong, "slowest": slowest}
    print(json.dumps({**figures, "seconds": round(time.perf_counter() - start, 1)}), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
