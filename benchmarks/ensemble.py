"""How long an ensemble of N leaves takes: fused, unrolled, and N independent networks one after the other.

    python benchmarks/ensemble.py --out docs/ensemble_time.md
    python benchmarks/ensemble.py --device cuda --batches 128 --out docs/ensemble_time_cuda.md

The backbone is that of hne/resnet50-cifar (32x32 pixels). All three are timed in turns in one run, and the table gives
the share of the time of the independent networks, the named alternative. `--members 2 4 8 16` are ensembles of a binary
tree; memory formats are the default one and channels-last. Fused activations are large, and glibc gives memory above
32 MiB back to the system after every operation; `--keep-memory` runs everything with an allocator that does not.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, HierarchicalEnsemble, transform
from anytimeify.papers import recipe

ROUNDS = 5
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**33)}  # read by glibc at start


@dataclass(frozen=True)
class Row:
    """Milliseconds of one batch, by what ran."""

    members: int
    batch: int
    step: str
    independent: float
    shares: dict[str, float]

    def __str__(self) -> str:
        shares = " | ".join(f"{share:.2f}" for share in self.shares.values())
        return f"| {self.members} | {self.batch} | {self.step} | {self.independent:.0f} | {shares} |"


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--members", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--compile", action="store_true", help="also the fused network through torch.compile")
    parser.add_argument("--keep-memory", action="store_true", help="with glibc: freed memory stays with the process")
    options = parser.parse_args()
    if options.keep_memory and any(os.environ.get(name) != value for name, value in KEPT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEPT})
    rows, streams = [], []
    for members in options.members:
        nets, backbones = networks(members, options.device)
        if options.compile:
            nets["fused, compiled"] = torch.compile(nets["fused"])  # type: ignore[assignment]  # called like a module
        streams.append(f"| {members} | {stream_share(nets['unrolled']):.4f} |")
        for batch in options.batches:
            for step in ("forward", "forward and backward"):
                rows.append(measure(nets, backbones, members, batch, step, options.device))
                print(rows[-1], flush=True)
    names = " | ".join(f"{name}, share" for name in rows[0].shares)
    head = f"| leaves | batch | step | independent, ms | {names} |\n|{'---|' * (4 + len(rows[0].shares))}"
    table = "\n".join([head, *map(str, rows)])
    stream = "\n".join(["| leaves | stream / one full evaluation, FLOPs |", "|---|---|", *streams])
    if options.out:
        device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
        options.out.write_text(PAGE.format(
            command=f"python benchmarks/ensemble.py --device {options.device} --batches "
            f"{' '.join(map(str, options.batches))} --members {' '.join(map(str, options.members))}"
            f"{' --compile' if options.compile else ''}{' --keep-memory' if options.keep_memory else ''}",
            table=table, stream=stream, device=device, torch=torch.__version__, python=platform.python_version(),
        ))  # fmt: skip
    print(table, stream, sep="\n\n")


def networks(members: int, device: str) -> tuple[dict[str, AnytimeModel], list[nn.Module]]:
    """The ensemble in its forms, with the same parameters, and as many copies of the backbone."""
    chosen = recipe("hne/resnet50-cifar")
    depth = members.bit_length() - 1
    cuts = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")[-depth:]
    fused = transform(chosen.backbone, HierarchicalEnsemble(cuts=cuts), chosen.example_inputs, verify=False)
    apart = transform(chosen.backbone, HierarchicalEnsemble(cuts=cuts, fuse=False), chosen.example_inputs, verify=False)
    apart.load_state_dict(fused.state_dict())
    nets = {"fused": fused, "fused, channels-last": copy.deepcopy(fused), "unrolled": apart}
    nets["fused, channels-last"] = nets["fused, channels-last"].to(memory_format=torch.channels_last)
    backbones = [copy.deepcopy(chosen.backbone).to(device) for _ in range(members)]
    return {name: net.to(device) for name, net in nets.items()}, backbones


def measure(
    nets: dict[str, AnytimeModel], backbones: list[nn.Module], members: int, batch: int, step: str, device: str
) -> Row:
    """The median over rounds in which every form has its turn."""
    x = torch.randn(batch, 3, 32, 32, device=device)
    wide = x.to(memory_format=torch.channels_last)
    forward = step == "forward"

    def independent() -> None:
        for backbone in backbones:
            run(backbone, x, lambda result: result, forward)

    def ensemble(name: str) -> Callable[[], None]:
        given = wide if "channels-last" in name else x
        return lambda: run(nets[name], given, lambda outputs: torch.stack(outputs.members), forward)

    turns = {"independent": independent, **{name: ensemble(name) for name in nets}}
    for module in (*nets.values(), *backbones):
        module.train(not forward)
    for turn in turns.values():
        turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    alone = middle.pop("independent")
    return Row(members, batch, step, 1000 * alone, {name: value / alone for name, value in middle.items()})


def run(module: nn.Module, x: Tensor, logits: Callable[[Any], Tensor], forward: bool) -> None:
    """One step; the loss of the timing is a sum of squares, the same for all."""
    if forward:
        with torch.inference_mode():
            module(x)
        return
    module.zero_grad(set_to_none=True)
    logits(module(x)).square().sum().backward()


def stream_share(net: AnytimeModel) -> float:
    """FLOPs of streaming every level over those of one full unrolled evaluation."""
    x = torch.randn(1, 3, 32, 32, device=next(net.parameters()).device)
    net.eval()
    with FlopCounterMode(display=False) as streamed:
        list(net.stream(x))
    with FlopCounterMode(display=False) as whole:
        net(x)
    return streamed.get_total_flops() / whole.get_total_flops()


PAGE = """# Ensembles: fused, unrolled, independent

`{command}`, torch {torch}, Python {python}, {device}. The backbone is that of `hne/resnet50-cifar`; the independent
networks are as many copies of it, run one after the other. Shares are of their time, the median of rounds in which
every form has its turn; below 1 is faster. The MACs of 16 leaves are 0.495 of those of 16 independent networks.

{table}

## Streaming

{stream}
"""

if __name__ == "__main__":
    main()
