"""How long nested networks take: a training step of all widths, a stream of them, and each of them alone.

    python benchmarks/nested.py --out docs/nested_time.md
    python benchmarks/nested.py --device cuda --channels-last --out docs/nested_time_cuda.md

The backbone is a residual network for 32x32 pixels (three stages of basic blocks), whose class can build every width by
hand, the named alternative. Everything is timed in turns, in an order drawn anew in each round, and compared within its
round; the tables give medians. Three questions:

1. How long is a training step (forward, loss and backward) of K levels beside that of the plain backbone: under dense
   connectivity (a pass per level), with the sandwich rule (four widths of many, see `SandwichSampler`), and under
   triangular connectivity (one pass, weights masked or in the fast form)? And beside the steps of K networks of those
   widths, built by hand and run one after the other?
2. What does streaming all levels of a triangular network cost beside one evaluation of its full level?
3. How long is an extracted level beside the network of that width, built by hand?

`--keep-memory` runs everything with an allocator that keeps freed memory: glibc gives blocks above 32 MiB back to the
system after every operation, and takes them anew. `--thread-time` counts the time of the computing thread instead of
the clock's, for a machine that others use too (one thread only).
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, JointLoss, NestedChannels, SandwichSampler, SchemeError, transform

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**33)}  # read by glibc at start
CLASSES = 10
PARTS = ("training", "stream", "latency")
WARM = 3  # steps before timing; in the first, fast forms are chosen


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages; `share` of the channels of a network whose first stage has `base` of them."""

    def __init__(self, base: int, blocks: int, share: float = 1.0) -> None:
        super().__init__()
        sizes = [round(base * 2**stage * share) for stage in range(3)]
        self.stem = nn.Conv2d(3, sizes[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(sizes[0])
        layers: list[nn.Module] = []
        for stage, size in enumerate(sizes):
            before = sizes[max(0, stage - 1)]
            layers += [Block(before, size, 2 if stage else 1), *(Block(size, size, 1) for _ in range(blocks - 1))]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(F.relu(self.norm(self.stem(x)))).mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Bench:
    """What is measured, and how."""

    base: int
    blocks: int
    rounds: int
    device: torch.device
    channels_last: bool
    clock: Callable[[], float]

    def images(self, batch: int) -> Tensor:
        images: Tensor = self.placed(torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        return images

    def placed(self, thing: Any) -> Any:
        """A module or images, on the device and in the memory format."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return thing.to(self.device, memory_format=form)

    def backbone(self, share: float = 1.0) -> ResNet:
        torch.manual_seed(0)
        net: ResNet = self.placed(ResNet(self.base, self.blocks, share))
        return net

    def nested(self, levels: int, **options: Any) -> AnytimeModel:
        """The backbone with so many widths."""
        scheme = NestedChannels(widths_of(levels), **options)
        net = transform(ResNet(self.base, self.blocks), scheme, torch.randn(2, 3, 32, 32), verify=False)
        placed: AnytimeModel = self.placed(net)
        return placed

    def seconds(self, turn: Callable[[], object]) -> float:
        start = self.clock()
        turn()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock() - start

    def compare(self, turns: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of every turn, round by round."""
        found: dict[str, list[float]] = {name: [] for name in turns}
        order = random.Random(0)
        for turn in turns.values():
            for _ in range(WARM):
                turn()
        for _ in range(self.rounds):
            for name in order.sample(list(turns), len(turns)):
                found[name].append(self.seconds(turns[name]))
        return found


def widths_of(levels: int) -> tuple[float, ...]:
    """So many widths at equal distances."""
    return tuple((level + 1) / levels for level in range(levels))


def share(found: Mapping[str, Sequence[float]], one: str, other: str) -> str:
    """The median share of one turn's time in another's, within a round; empty where one did not run."""
    if one not in found or other not in found:
        return ""
    return f"{statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)):.3f}"


# 1. Training steps.


def training(bench: Bench, levels: int, batch: int, notes: list[str]) -> str:
    """One row of the first table."""
    x = bench.images(batch)
    target = (torch.arange(batch) % CLASSES).to(bench.device)
    plain, thin = bench.backbone().train(), [bench.backbone(width).train() for width in widths_of(levels)]

    def alone(module: nn.Module) -> Callable[[], object]:
        return lambda: backward(module, lambda: F.cross_entropy(module(x), target))

    def joint(net: AnytimeModel, context: Callable[[], AbstractContextManager[None]]) -> Callable[[], object]:
        def run() -> None:
            with context():
                backward(net, lambda: net.loss(net(x), target))

        return run

    each = [alone(module) for module in thin]
    turns: dict[str, Callable[[], object]] = {"plain": alone(plain), "apart": lambda: [run() for run in each]}
    turns["dense"] = joint(bench.nested(levels).train(), nullcontext)
    turns["sandwich"] = sandwich(bench, x, target)
    triangular = triangular_net(bench, levels, notes)
    if triangular is not None:
        for name, context in forms(notes):
            turns[name] = joint(triangular.train(), context)
    found = bench.compare(turns)
    shares = [share(found, name, "plain") for name in ("apart", "dense")]
    shares += [
        share(found, "dense", "apart"),
        *(share(found, name, "plain") for name in ("sandwich", "masked", "fast")),
    ]
    return f"| {levels} | {batch} | {1000 * statistics.median(found['plain']):.1f} | {' | '.join(shares)} |"


def backward(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """A step without the optimiser, whose time depends on the number of parameters alone."""
    module.zero_grad(set_to_none=True)
    loss().backward()


def sandwich(bench: Bench, x: Tensor, target: Tensor) -> Callable[[], object]:
    """A step of the sandwich rule: the smallest width, the largest, and two drawn at random. Widths keep multiples of a
    quarter of the first stage's channels, so that all graphs there may be exist before the clock starts."""
    net = bench.nested(4, norms="shared", heads="shared").train()
    sampler = SandwichSampler(net, multiple_of=bench.base // 4, cache=1024, generator=torch.Generator().manual_seed(0))
    loss = JointLoss()
    with torch.no_grad():
        for step in range(1025):
            sampler.run_at(sampler.low + (sampler.high - sampler.low) * step / 1024, x[:2])
    return lambda: backward(net, lambda: loss(sampler(x), target))


def triangular_net(bench: Bench, levels: int, notes: list[str]) -> AnytimeModel | None:
    """The triangular network, or none, with a note that says why."""
    try:
        return bench.nested(levels, connectivity="triangular")
    except SchemeError as error:
        note(notes, f"Triangular networks are left out: {error}")
        return None


def forms(notes: list[str]) -> Iterator[tuple[str, Callable[[], AbstractContextManager[None]]]]:
    """The ways to compute a triangular layer; whatever is chosen by measurement is the fast one."""
    try:
        from anytimeify import kernels
    except ImportError:
        note(notes, "The fast form of triangular layers is left out: there is none.")
        yield "masked", nullcontext
        return
    yield "masked", lambda: kernels.form("masked")
    yield "fast", lambda: kernels.form("measured")


def note(notes: list[str], text: str) -> None:
    """Adds a sentence to the page, once."""
    if text not in notes:
        notes.append(text)


# 2. Streams.


def stream(bench: Bench, levels: int, batch: int, notes: list[str]) -> str | None:
    """One row of the second table."""
    net = triangular_net(bench, levels, notes)
    if net is None:
        return None
    net.eval()
    x = bench.images(batch)
    full, blocks = net.extract(-1, dense=True), net.extract(-1)
    turns: dict[str, Callable[[], object]] = {
        "full": lambda: full(x),
        "blocks": lambda: blocks(x),
        "inside": lambda: net(x, level=-1),
        "all": lambda: net(x),
        "stream": lambda: list(net.stream(x)),
    }
    with torch.inference_mode():
        found = bench.compare(turns)
    flops = counted(lambda: list(net.stream(x)))
    kept = 2 * net.levels[-1].cost.macs * batch  # multiplications and additions, of the weights that masks keep
    cells = [f"{flops / kept:.4f}", f"{flops / counted(lambda: full(x)):.3f}"]
    cells += [share(found, name, "full") for name in ("blocks", "inside", "all", "stream")]
    return f"| {levels} | {batch} | {1000 * statistics.median(found['full']):.1f} | {' | '.join(cells)} |"


def counted(run: Callable[[], object]) -> int:
    """FLOPs, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


# 3. Extracts.


def latency(bench: Bench, levels: int, batch: int) -> Iterator[str]:
    """The rows of the third table, one for each width."""
    net, x = bench.nested(levels).eval(), bench.images(batch)
    for level, width in zip(net.levels, widths_of(levels), strict=True):
        by_hand, inside = bench.backbone(width).eval(), net.graphs[1 + level.index]
        modules = {"by hand": by_hand, "inside": inside, "extract": net.extract(level)}
        modules["folded"] = bench.placed(net.extract(level, fold=True))
        turns = {name: partial(module, x) for name, module in modules.items()}
        with torch.inference_mode():
            found = bench.compare(turns)
        shares = " | ".join(share(found, name, "by hand") for name in ("inside", "extract", "folded"))
        yield f"| {width:g} | {batch} | {1000 * statistics.median(found['by hand']):.2f} | {shares} |"


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--levels", type=int, nargs="*", default=[4, 8], help="how many widths; extracts: the first")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--base", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of a stage")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--channels-last", action="store_true", help="networks and images in that memory format")
    parser.add_argument("--keep-memory", action="store_true", help="with glibc: freed memory stays with the process")
    parser.add_argument("--thread-time", action="store_true", help="count the time of this thread alone")
    options = parser.parse_args()
    if options.keep_memory and any(os.environ.get(name) != value for name, value in KEPT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEPT})
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.thread_time else time.perf_counter
    device = torch.device(options.device)
    bench = Bench(options.base, options.blocks, options.rounds, device, options.channels_last, clock)
    notes: list[str] = []
    tables: list[str] = []
    for part in options.parts:
        rows: list[str] = []
        for row in measured(part, bench, options, notes):
            print(row, flush=True)
            rows.append(row)
        tables.append(TABLES[part].format(rows="\n".join(rows)))
    page = PAGE.format(
        command=f"python {' '.join(['benchmarks/nested.py', *sys.argv[1:]])}",
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        clock="time of the computing thread" if options.thread_time else "time of the clock",
        torch=torch.__version__,
        python=platform.python_version(),
        base=options.base,
        blocks=options.blocks,
        rounds=options.rounds,
        tables="\n".join(tables),
        notes="".join(f"\n{one}\n" for one in notes),
    )
    if options.out:
        options.out.write_text(page)
    print(page)


def measured(part: str, bench: Bench, options: argparse.Namespace, notes: list[str]) -> Iterator[str]:
    """The rows of one table."""
    for levels in options.levels if part != "latency" else options.levels[:1]:
        for batch in options.batches:
            if part == "training":
                yield training(bench, levels, batch, notes)
            elif part == "latency":
                yield from latency(bench, levels, batch)
            elif (row := stream(bench, levels, batch, notes)) is not None:
                yield row


TABLES = {
    "training": """## Training step

Forward, loss and backward. Apart: networks of all widths, built by hand, one after the other. Sandwich: four widths of
a network with four levels. Triangular masked and fast: one pass for all levels, with masked weights and with the
product that is fastest for each layer. Shares of the plain backbone's step, but for the one of dense beside apart.

| levels | batch | plain, ms | apart | dense | dense / apart | sandwich | triangular, masked | triangular, fast |
|---|---|---|---|---|---|---|---|---|
{rows}
""",
    "stream": """## Streaming all levels of a triangular network

Operations: of the stream by torch's counter, beside those of the full level, where masked weights do not count, and
beside those that the counter finds in the full level's extract with `dense=True`, which multiplies zeros too. Times are
shares of that extract's: of the extract in blocks, of the full level inside the model, of all levels in one pass, of
the stream.

| levels | batch | dense, ms | stream / full, FLOPs | beside dense | in blocks | full, inside | all levels | stream |
|---|---|---|---|---|---|---|---|---|
{rows}
""",
    "latency": """## Each level beside the network of that width

Evaluation, dense connectivity. Shares of the time of the network built by hand: of the level inside the model, of its
extract, and of its extract with batch norms folded.

| width | batch | by hand, ms | inside | extract | folded |
|---|---|---|---|---|---|
{rows}
""",
}

PAGE = """# Nested networks: how long training, streams and extracts take

`{command}`, torch {torch}, Python {python}, {device}, {clock}. A residual network of three stages of {blocks} blocks
for 32x32 pixels, {base} channels in the first stage; shares are medians of {rounds} rounds in which everything has its
turn, below 1 is faster.
{notes}
{tables}"""

if __name__ == "__main__":
    main()
