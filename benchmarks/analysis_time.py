"""How the time of the axis analysis grows with the size of the graph.

    python benchmarks/analysis_time.py --out docs/analysis_time.md

Networks of several kinds, from about a hundred to twenty thousand nodes, are generated as modules and captured; then
`analyse` runs on each graph, the best of three times, once where that takes over ten seconds. Times are seconds of the
processor, which other programs on the machine lengthen less than those of the clock. Capturing is the long part (an
export of each network, minutes in all) and is not measured here: `benchmarks/transform_time.py` does that.
`--sizes 100 1000` is a quick look.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.ir import Program

SIZES = (100, 300, 1000, 3000, 10000, 20000)
REPEATS = 3
IMAGE = torch.zeros(2, 3, 4, 4)
TOKENS = torch.zeros(2, 9, 12)


class Residual(nn.Module):
    """Bottlenecks of two convolutions and a norm, added to the stream."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(layers))
        self.first = nn.ModuleList(nn.Conv2d(8, 16, 1, bias=False) for _ in range(layers))
        self.second = nn.ModuleList(nn.Conv2d(16, 8, 1, bias=False) for _ in range(layers))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, norm, second in zip(self.first, self.norms, self.second, strict=True):
            x = x + second(norm(first(x)).relu())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Layers that see the concatenation of all before them, since the last transition or, without any, the start."""

    def __init__(self, layers: int, block: int | None = None) -> None:
        super().__init__()
        width, stem, growth = 8, 8, 2
        self.stem = nn.Conv2d(3, stem, 1)
        self.layers, self.transitions = nn.ModuleList(), nn.ModuleDict()
        for index in range(layers):
            if block is not None and index and index % block == 0:
                self.transitions[str(index)] = nn.Conv2d(width, stem, 1, bias=False)
                width = stem
            self.layers.append(nn.Conv2d(width, growth, 1, bias=False))
            width += growth
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, layer in enumerate(self.layers):
            if str(index) in self.transitions:
                x = self.transitions[str(index)](x)
            x = torch.cat([x, layer(x).relu()], 1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Pre-norm blocks: a fused projection to queries, keys and values, attention with two heads, and an MLP."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 12)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(layers))
        self.qkv = nn.ModuleList(nn.Linear(12, 36) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(12, 12) for _ in range(layers))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12)) for _ in range(layers))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, qkv, out, mlp in zip(self.norms, self.qkv, self.out, self.mlp, strict=True):
            parts = qkv(norm(x)).reshape(x.shape[0], 9, 3, 2, 6).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + out(y.transpose(1, 2).reshape(x.shape[0], 9, 12))
            x = x + mlp(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Parallel convolutions, concatenated: `count` at a time, or, without that, all at once."""

    def __init__(self, branches: int, count: int | None = None) -> None:
        super().__init__()
        each = branches if count is None else count
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(8, 4, 1, bias=False) for _ in range(each)) for _ in range(max(1, branches // each))
        )
        self.joins = nn.ModuleList(nn.Conv2d(4 * each, 8, 1, bias=False) for _ in self.blocks)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branches, join in zip(self.blocks, self.joins, strict=True):
            assert isinstance(branches, nn.ModuleList)
            x = join(torch.cat([branch(x).relu() for branch in branches], 1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """Half of the channels through a convolution and a squeeze-and-excitation, then a channel shuffle."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=False) for _ in range(layers))
        self.squeeze = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(layers))
        self.excite = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in range(layers))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, squeeze, excite in zip(self.convs, self.squeeze, self.excite, strict=True):
            left, right = x.chunk(2, 1)
            right = conv(right)
            right = right * excite(squeeze(right.mean((2, 3), keepdim=True)).relu()).sigmoid()
            x = torch.cat([left, right], 1).reshape(-1, 2, 8, 4, 4).transpose(1, 2).reshape(-1, 16, 4, 4)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Kind(NamedTuple):
    """One kind of network: `make(count)`, and how many nodes one layer or branch has."""

    make: Callable[[int], nn.Module]
    nodes: float
    example: Tensor = IMAGE


KINDS = {
    "residual convolutions": Kind(Residual, 11),
    "attention and MLP": Kind(Transformer, 24, TOKENS),
    "squeeze, excite, shuffle": Kind(Shuffled, 18),
    "branches, 16 at a join": Kind(lambda count: Branches(count, 16), 3.2),
    "branches, one join": Kind(Branches, 3),
    "dense, blocks of 32": Kind(lambda count: Dense(count, 32), 4.1),
    "dense, one block": Kind(Dense, 4),
}


class Row(NamedTuple):
    """One network: its kind, its nodes, and seconds of analysis."""

    kind: str
    nodes: int
    seconds: float

    def __str__(self) -> str:
        return f"| {self.kind} | {self.nodes} | {self.seconds:.3f} | {1e6 * self.seconds / self.nodes:.0f} |"


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES), help="nodes, about")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in arguments.kinds:
        for size in arguments.sizes:
            rows.append(measure(kind, size))
            print(rows[-1], flush=True)
    growth = [growth_of([row for row in rows if row.kind == kind]) for kind in arguments.kinds]
    table = "\n".join(["| network | nodes | seconds | µs a node |", "|---|---|---|---|", *map(str, rows)])
    exponents = "\n".join(["| network | exponent | from 1,000 nodes on |", "|---|---|---|", *growth])
    print(exponents)
    if arguments.out:
        machine = f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
        arguments.out.write_text(PAGE.format(table=table, exponents=exponents, machine=machine))


def measure(kind: str, size: int) -> Row:
    """The analysis of one network: the best of some runs, for other work on the machine only ever adds time."""
    chosen = KINDS[kind]
    program = captured(chosen.make(max(1, round(size / chosen.nodes))), chosen.example)
    seconds: list[float] = []
    while len(seconds) < REPEATS and (not seconds or seconds[0] < 10):
        gc.collect()
        start = time.process_time()
        analyse(program)
        seconds.append(time.process_time() - start)
    return Row(kind, len(program.graph.nodes), min(seconds))


def captured(model: nn.Module, example: Tensor) -> Program:
    """The canonical graph, without the check of its numbers: they do not matter here."""
    return capture(model, (example,), check=False).program


def growth_of(rows: Sequence[Row]) -> str:
    """A row of exponents; small graphs are too quick to tell much."""
    large = exponent([row for row in rows if row.nodes > 900])
    return f"| {rows[0].kind} | {exponent(rows):.2f} | {'-' if math.isnan(large) else f'{large:.2f}'} |"


def exponent(rows: Sequence[Row]) -> float:
    """The slope of the least-squares line through log(nodes), log(seconds): 1 is linear, 2 quadratic."""
    if len(rows) < 2:
        return math.nan
    x, y = [math.log(row.nodes) for row in rows], [math.log(row.seconds) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else math.nan


PAGE = """# Time of the axis analysis

`python benchmarks/analysis_time.py --out docs/analysis_time.md`, {machine}, one thread. Seconds of the
processor, the best of three runs, or the only one where it takes over ten seconds; other programs ran on the cores,
and lengthen these times too. Networks are generated and captured; what is measured is `analyse` alone.

{table}

The exponent of seconds = c · nodes^exponent, fitted to the sizes above (least squares in logarithms):

{exponents}

A chain of concatenations that is never cut off ("dense, one block") grows faster than its nodes: after n of them an
axis is a sum of n parts, and every node that has this axis reads all of them. Networks cut the chain by a transition
layer, as "dense, blocks of 32" does, and grow with their nodes.
"""

if __name__ == "__main__":
    main()
