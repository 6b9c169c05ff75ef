"""Does the full level train as the backbone does? One step of each, in train mode and without randomness.

    python -m benchmarks.training_check LIST.json torchvision:30 hf:30 --out docs/training_check.md

A list is a JSON file as `benchmarks.coverage` takes it; `PREFIX:COUNT` stands for the first so many of a zoo, small
ones first. Each backbone has a process of its own, which transforms it to two widths and compares the prediction, the
gradient of every parameter and the buffers after one step (`anytimeify.verification.compare_training`), which is what
`transform(..., verify=True)` checks. Seconds are processor time, of verification without that check and with it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import zoo
from benchmarks.coverage.children import ask
from benchmarks.coverage.selection import Backbone, read_list

HEADER = """# The training check over the zoo

One step of the full level beside one of the backbone, in train mode and without randomness: the largest difference of
the prediction and of any parameter's gradient, relative to the largest element, and how many of the buffers that the
step of the backbone changes hold the same afterwards. What differs in single precision by more than 1e-4 is run in
double. `transform(..., verify=True)` does the same.

    python -m benchmarks.training_check shared/zoo/timm_families.json torchvision:30 hf:30 --out docs/training_check.md

torch {torch}, Python {python}, CPU, one thread, shared machine.

{summary}

| backbone | prediction | gradient | buffers | verify, s | with training, s | ratio | said |
|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measures all, or, given a task and a file, one as a child."""
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        _measure(**json.loads(sys.argv[1]), answer=Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--out", type=Path, help="write the page")
    parser.add_argument("--results", type=Path, help="an object a line; what it holds already is not measured again")
    parser.add_argument("--seconds", type=float, default=900, help="the limit of one backbone")
    options = parser.parse_args()
    rows = _read(options.results)
    for backbone in _chosen(options.backbones):
        if any(row["name"] == backbone.name for row in rows):
            continue
        task = {"name": backbone.name, "input_size": backbone.input_size}
        found, ended = ask("benchmarks.training_check", task, options.seconds, {"OMP_NUM_THREADS": "1"})
        row = {"name": backbone.name, "error": "" if ended.code == 0 else ended.last, **found}
        row["error"] = "out of time" if ended.timed_out else row["error"]
        rows.append(row)
        print(_line(row), flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if options.out:
        text = "\n".join(map(_line, rows))
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        options.out.write_text(HEADER.format(rows=text, summary=_summary(rows), **versions))


def _read(results: Path | None) -> list[dict[str, Any]]:
    if results is None or not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def _chosen(given: list[str]) -> Iterator[Backbone]:
    for one in given:
        prefix, _, count = one.partition(":")
        if one.endswith(".json"):
            yield from read_list(Path(one))
        elif count.isdigit():
            yield from (Backbone(f"{prefix}:{name}") for name in zoo.catalogue(prefix)[: int(count)])
        else:
            yield Backbone(one)


def _measure(name: str, input_size: list[int] | None, answer: Path) -> None:
    from anytimeify import NestedChannels, transform, verification
    from anytimeify.verification import levels

    def say(**found: Any) -> None:
        with answer.open("a") as file:
            file.write(json.dumps(found) + "\n")

    torch.set_num_threads(1)
    model, inputs = zoo.build(name, input_size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        net = transform(model, NestedChannels((0.5, 1.0)), inputs, verify=False)
        say(said=[str(one.message) for one in told if "trains differently" in str(one.message)])
        start = time.process_time()
        gap, limit = verification.compare_training(net, model)
        training = time.process_time() - start
        if gap is None:
            say(skipped="the backbone does not train on its example inputs, or has no floating-point prediction")
        else:
            say(prediction=gap.prediction, gradient=gap.gradient, parameter=gap.parameter, limit=limit)
            say(buffer=gap.buffer, buffer_name=gap.name, followed=gap.followed, changed=gap.changed)
            say(within=gap.within(limit))
        levels.verify_training = lambda *_: None  # type: ignore[assignment]  # so that the rest is timed alone
        start = time.process_time()
        verification.verify(net, model)
        say(verify=time.process_time() - start, training=training)


def _line(row: dict[str, Any]) -> str:
    def number(name: str) -> str:
        value = row.get(name)
        return "" if value is None else "inf" if not math.isfinite(value) else f"{value:.1e}"

    said = "; ".join([*row.get("said", ()), row.get("skipped", ""), row.get("error", "")]).strip("; ")
    if row.get("within") is False:
        said = f"differs: {row['parameter']}, {row['buffer_name']} {said}"
    buffers = f"{row['followed']} of {row['changed']}" if "changed" in row else ""
    verify, training = row.get("verify"), row.get("training")
    times = [f"{verify:.1f}", f"{verify + training:.1f}", f"{1 + training / verify:.2f}"] if verify else [""] * 3
    cells = [row["name"], number("prediction"), number("gradient"), buffers, *times, said.replace("|", "/")[:200]]
    return f"| {' | '.join(cells)} |"


def _summary(rows: list[dict[str, Any]]) -> str:
    compared = [row for row in rows if "within" in row]
    within = sum(row["within"] for row in compared)
    ratios = sorted(1 + row["training"] / row["verify"] for row in rows if row.get("verify"))
    middle = f"{ratios[len(ratios) // 2]:.2f}" if ratios else "-"
    return (
        f"{len(rows)} backbones, {len(compared)} compared, {within} alike; buffers that a step changes: "
        f"{sum(row['changed'] for row in compared)}, alike afterwards {sum(row['followed'] for row in compared)}. "
        f"Verification takes {middle} times (median) what it takes without the check."
    )


if __name__ == "__main__":
    main()
