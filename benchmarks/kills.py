"""Whether runs of `anytimeify train` that are killed end with the weights of a run that is left alone.

    python -m benchmarks.kills [--kills 20] [--seed 0] [--out DIR] [NETWORK ...]

Every network is trained twice: without a break, and with so many kills (SIGKILL) at random points, after each of which
the run goes on by `--resume`. A quarter of the kills may come before it has got anywhere, the others come at some point
after a new checkpoint. Then weights and the lines of `metrics.jsonl` are compared, bit for bit, but for times. A table
is printed; the exit status is 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from anytimeify import cli, load

__all__ = ["NETWORKS", "main"]

RESNET = ("timm:resnet18", "--input-shape", "2,3,32,32", "--batch", "8", "--scheme")
NETWORKS: dict[str, tuple[str, ...]] = {
    "anytime/is-resnext-47-cifar": ("paper:anytime/is-resnext-47-cifar", "--batch", "4"),
    "nestednet/resnet-56": ("paper:nestednet/resnet-56", "--batch", "4"),
    "hne/resnet50-cifar-small": ("paper:hne/resnet50-cifar-small", "--batch", "4"),
    "dhm/resnet-32": ("paper:dhm/resnet-32", "--batch", "4"),
    "dcm/resnet-110": ("paper:dcm/resnet-110", "--batch", "4"),
    "resnet18, channels": (*RESNET, "nested-channels{widths=0.5,1}"),
    "resnet18, triangular": (*RESNET, "nested-channels{widths=0.5,1 connectivity=triangular}"),
    "resnet18, weights": (*RESNET, "nested-weights{densities=0.3,1}"),
    "resnet18, depth": (*RESNET, "nested-depth{depths=0.5,1}"),
    "resnet18, depth and channels": (*RESNET, "nested-depth{depths=0.5,1} nested-channels{widths=0.5,1}"),
    "resnet18, resolution": (*RESNET, "nested-resolution{sizes=0.5,1}"),
    "resnet18, ensemble": (*RESNET, "hierarchical-ensemble{depth=1}"),
    "resnet18, branches": (*RESNET, "auxiliary-branches{branches=1}"),
}
BATCHES = 2  # in an epoch, after which a checkpoint is written
ANYWHERE = 0.25  # of the kills


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"by default {', '.join(NETWORKS)}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the points where runs are killed")
    parser.add_argument("--out", type=Path, help="keep the runs and what they print")
    given = parser.parse_args()
    if unknown := set(given.networks) - NETWORKS.keys():
        parser.error(f"there is no network {', '.join(unknown)}")
    print(
        "| network | epochs | steps | kills | epochs that were begun | weights and metrics |\n|---|--:|--:|--:|--:|---|"
    )
    wrong = 0
    for name in given.networks or NETWORKS:
        folder = given.out / name.replace("/", "-") if given.out else Path(tempfile.mkdtemp())
        same = compared(name, NETWORKS[name], folder, given.kills, random.Random(f"{given.seed} {name}"))
        wrong += not same
        if given.out is None:
            shutil.rmtree(folder)
    return 1 if wrong else 0


def compared(name: str, options: tuple[str, ...], folder: Path, kills: int, draw: random.Random) -> bool:
    """Trains in both ways, prints a line of the table, and tells whether all is the same."""
    epochs = 2 * kills + 8
    command = [
        "train",
        *options,
        "--data",
        "mnist5k:train=200",
        "--epochs",
        str(epochs),
        "--limit-batches",
        str(BATCHES),
    ]
    start = time.perf_counter()
    whole = started([*command, "--out", str(folder / "whole")], folder / "whole.log")
    whole.join()
    seconds = time.perf_counter() - start
    begun = [killed(command, folder, draw, seconds / epochs) for _ in range(kills)]
    last = started([*command, "--out", str(folder / "killed"), "--resume"], folder / "killed.log")
    last.join()
    if (whole.exitcode, last.exitcode) != (0, 0):
        raise SystemExit(f"{name}: a run failed; see {folder}")
    ours, theirs = (load(folder / run / "net.safetensors").state_dict() for run in ("killed", "whole"))
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())
    same = same and lines(folder / "killed") == lines(folder / "whole")
    rows = (
        name,
        epochs,
        len(lines(folder / "whole")) * BATCHES,
        kills,
        len(set(begun)),
        "the same" if same else "OTHERS",
    )
    print("|", " | ".join(map(str, rows)), "|", flush=True)
    return same


def killed(command: list[str], folder: Path, draw: random.Random, epoch: float) -> int:
    """Starts the run, or goes on with it, and kills it; how many epochs had ended then."""
    out = folder / "killed"
    before = checkpoints(out)
    resume = ["--resume"] if (out / "config.json").exists() else []
    process = started([*command, "--out", str(out), *resume], folder / "killed.log")
    if draw.random() < ANYWHERE:
        time.sleep(draw.random() * 10 * epoch)
    else:
        while process.is_alive() and checkpoints(out) <= before:
            time.sleep(0.005)
        time.sleep(draw.random() * 1.5 * epoch)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise SystemExit(f"a run had ended before it was killed (status {process.exitcode}); see {folder}")
    return len(lines(out))


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in out.glob("checkpoints/*.pt")}


def lines(out: Path) -> list[dict[str, Any]]:
    """Of every epoch, without what depends on the clock."""
    path = out / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if not key.startswith(("seconds", "samples"))} for line in found]


def started(command: list[str], log: Path) -> BaseProcess:
    """A process of its own, and not a copy of this one: autograd cannot be copied once it has threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anytimeify.cli", "anytimeify.train.fitting", "timm", "torchvision"])
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=run, args=(command, log))
    process.start()
    return process


def run(command: list[str], log: Path) -> None:
    """The command line, in this process."""
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    cli.main(command)


if __name__ == "__main__":
    sys.exit(main())
