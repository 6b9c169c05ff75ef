"""What networks of several levels cost on a GPU beside their backbones: steps of training, evaluation, memory.

    python -m benchmarks.gpu --out docs/gpu_time.md
    python -m benchmarks.gpu --device cpu --small                     # whether it runs, not how fast

ResNet-50 (channels-last) and ViT-B/16 under bfloat16 autocast, batch 64, 224 pixels, and fused ensembles of 16 leaves
at batch 128. Norms: forward and backward of a layer norm of the ViT, beside that of all levels by operations of torch
(masked) and by Triton (kernel). Rows of a network and kind of step are measured in turns, between two events of the
device, after a warm-up; each has its median. Share: of the row `plain` in the same turn, the median. Host: until Python
is done with a step, the device still running; where that is near the time of the step, the device waits for Python.
Busy: the time of all kernels by the profiler. Memory: the most that a turn has at once beside weights and gradients.
`thin`: the network of timm with that share of its channels, built so by hand.

What has not begun after `--budget` seconds is left out and named.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from anytimeify import AnytimeModel, HierarchicalEnsemble, NestedChannels, kernels, transform
from anytimeify.papers import recipe

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4}


class Times(NamedTuple):
    """Milliseconds of a turn, and MiB."""

    step: float
    host: float
    busy: float
    memory: float


@dataclass(frozen=True)
class Row:
    """One thing to measure: `make` gives what is run in turns."""

    network: str
    name: str
    make: Callable[[], Callable[[], object]]
    form: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: str
    small: bool

    @property
    def batch(self) -> int:
        return 2 if self.small else 64

    @property
    def side(self) -> int:
        return 32 if self.small else 224

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16)


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks and batches, few turns, no compiler")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=330.0, help="seconds after which nothing more begins")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    setting = Setting(options.device, options.small)
    rounds = 2 if options.small else options.rounds
    torch.backends.cudnn.benchmark = True
    lines = [
        description(setting),
        "",
        "| network | row | ms | share | host, ms | busy, ms | memory, MiB |",
        "|" + "---|" * 7,
    ]
    print("\n".join(lines), flush=True)
    began, left_out = time.monotonic(), []
    for group in groups(setting):
        if time.monotonic() - began > options.budget:
            left_out += [f"{row.network}, {row.name}" for row in group]
            continue
        for row, times, share in measured(group, setting, rounds):
            numbers = f"{times.step:.1f} | {share:.2f} | {times.host:.1f} | {times.busy:.1f} | {times.memory:.0f}"
            lines.append(f"| {row.network} | {row.name} | {numbers} |")
            print(lines[-1], flush=True)
    lines += [f"\nNot measured within {options.budget:.0f} s: {'; '.join(left_out)}."] if left_out else []
    print(f"\n{time.monotonic() - began:.0f} s")
    if options.out:
        options.out.write_text("\n".join(["# Times on a GPU", "", *lines, ""]))


def description(setting: Setting) -> str:
    """The command, the device and the versions."""
    name = torch.cuda.get_device_name() if setting.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return (
        f"`python -m benchmarks.gpu --device {setting.device}{' --small' * setting.small}`, {name}, torch "
        f"{torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}. bfloat16 autocast."
    )


# -- what is measured --------------------------------------------------------------------------------------------------


def groups(setting: Setting) -> Iterator[list[Row]]:
    """Everything, the first of a group being what the others are compared with; what compiles last."""
    networks = ("ResNet-50", "ViT-B/16")
    made = {network: Networks.of(network, setting) for network in networks}
    for network in networks:
        yield training(network, made[network], setting)
        yield forward(network, made[network], setting)
    yield norms(setting)
    yield from ensembles(setting)
    for mode in (None, "reduce-overhead") if not setting.small else ():
        for network in networks:
            yield compiled(network, made[network], setting, mode)


class Networks(NamedTuple):
    """A backbone and what becomes of it."""

    plain: nn.Module
    triangular: AnytimeModel
    dense: AnytimeModel
    thin: list[nn.Module]

    @staticmethod
    def of(network: str, setting: Setting) -> Networks:
        model = backbone(network, setting)
        example = (torch.randn(2, 3, setting.side, setting.side),)
        triangular = transform(model, NestedChannels(WIDTHS, connectivity="triangular"), example, verify=False)
        dense = transform(copy.deepcopy(model), NestedChannels(WIDTHS), example, verify=False)
        return Networks(model, triangular, dense, [backbone(network, setting, width) for width in WIDTHS])


def training(network: str, made: Networks, setting: Setting) -> list[Row]:
    """Four widths of a network, in one pass and as networks of their own."""

    def by_hand() -> Callable[[], object]:
        turns = [trainer(one, network, setting) for one in made.thin]
        return lambda: [turn() for turn in turns]

    return [
        Row(network, "plain", lambda: trainer(made.plain, network, setting)),
        Row(network, "triangular, masked", lambda: trainer(made.triangular, network, setting), masked),
        Row(network, "triangular, measured", lambda: trainer(made.triangular, network, setting)),
        Row(network, "dense, four widths", lambda: trainer(made.dense, network, setting)),
        Row(network, "four thin ones", by_hand),
    ]


def forward(network: str, made: Networks, setting: Setting) -> list[Row]:
    """Levels alone, in eval mode."""
    rows = [Row(network, "plain, forward", lambda: evaluator(made.plain, network, setting))]
    for level, width in enumerate(WIDTHS):
        alike = {
            "thin": made.thin[level],
            "dense, extract": made.dense.extract(level),
            "triangular, dense extract": made.triangular.extract(level, dense=True),
        }
        rows += [
            Row(network, f"{name} {width:g}", lambda one=one: evaluator(one, network, setting))  # type: ignore[misc]
            for name, one in alike.items()
        ]
    return rows


def compiled(network: str, made: Networks, setting: Setting, mode: str | None) -> list[Row]:
    """A step that `torch.compile` has turned into kernels, in the last mode replayed without Python."""
    more = "compiled" if mode is None else f"compiled, {mode}"
    return [
        Row(network, f"plain, {more}", lambda: trainer(made.plain, network, setting, compiled=mode or "default")),
        Row(
            network,
            f"triangular, {more}",
            lambda: trainer(made.triangular, network, setting, compiled=mode or "default"),
        ),
    ]


def masked() -> AbstractContextManager[None]:
    """Triangular layers as dense ones with masked weights."""
    return kernels.form("masked")


def norms(setting: Setting) -> list[Row]:
    """A layer norm, and that of all levels in both forms."""
    tokens, channels = (8, 64) if setting.small else (64 * 197, 768)
    ends = [channels * (level + 1) // len(WIDTHS) for level in range(len(WIDTHS))]
    x, grad = torch.randn(2, tokens, channels, device=setting.device)
    weight, bias = torch.randn(2, channels, device=setting.device)
    given = [one.requires_grad_() for one in (x, weight, bias)]

    def turn(levels: bool) -> Callable[[], object]:
        def step() -> object:
            if levels:
                y = torch.ops.anytimeify.prefix_norm(x, ends, weight, bias, 1e-5, True)
            else:
                y = F.layer_norm(x, (channels,), weight, bias, 1e-5)
            return torch.autograd.grad(y, given, grad)

        return step

    network = f"norm of {tokens} x {channels}"
    return [
        Row(network, "plain", lambda: turn(False)),
        Row(network, "triangular, masked", lambda: turn(True), masked),
        Row(network, "triangular, kernel", lambda: turn(True), lambda: kernels.form("blocks")),
        Row(network, "triangular, measured", lambda: turn(True)),
    ]


def ensembles(setting: Setting) -> Iterator[list[Row]]:
    """A fused ensemble of 16 leaves of a network for 32 pixels, beside the network itself."""
    chosen = recipe("hne/resnet50-cifar")
    cuts = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    net = transform(chosen.backbone, HierarchicalEnsemble(cuts=cuts), chosen.example_inputs, verify=False)
    network, batch = "resnet50-cifar", 2 if setting.small else 128
    for kind, make in (("forward", evaluator), ("training", trainer)):
        yield [
            Row(
                network,
                f"{name}, {kind}",
                lambda make=make, one=one: make(one, network, setting, batch=batch, side=32),  # type: ignore[misc]
            )
            for name, one in (("plain", chosen.backbone), ("ensemble of 16, fused", net))
        ]


def backbone(network: str, setting: Setting, width: float = 1.0) -> nn.Module:
    """A network of timm, with a share of its channels."""
    import timm

    if network == "ResNet-50":
        layers = (1, 1, 1, 1) if setting.small else (3, 4, 6, 3)
        channels = tuple(int(width * one) for one in (64, 128, 256, 512))
        model: nn.Module = timm.create_model("resnet50", layers=layers, channels=channels)
        if width < 1:
            model = timm.create_model("resnet50", layers=layers, channels=channels, stem_width=int(64 * width))
    else:
        sizes = SMALL_VIT if setting.small else {"embed_dim": 768, "num_heads": 12}
        thin = {name: int(width * sizes[name]) for name in ("embed_dim", "num_heads")}
        model = timm.create_model("vit_base_patch16_224", **{**sizes, **thin})
    return model


def trainer(
    net: nn.Module, network: str, setting: Setting, *, compiled: str | None = None, batch: int = 0, side: int = 0
) -> Callable[[], object]:
    """A step of training without the optimiser: all levels, their mean loss, backward."""
    x, target = inputs(net, network, setting, batch, side)
    run: Any = torch.compile(net.train(), mode=compiled) if compiled else net.train()

    def turn() -> None:
        for parameter in net.parameters():
            parameter.grad = None
        with setting.autocast():
            y = run(x)
            levels = (y,) if isinstance(y, Tensor) else y.levels
            loss = torch.stack([F.cross_entropy(one.float(), target) for one in levels]).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # of torch

    return turn


def evaluator(net: nn.Module, network: str, setting: Setting, *, batch: int = 0, side: int = 0) -> Callable[[], object]:
    """A forward pass in eval mode."""
    x, _ = inputs(net, network, setting, batch, side)
    net.eval()

    def turn() -> None:
        with torch.no_grad(), setting.autocast():
            net(x)

    return turn


def inputs(net: nn.Module, network: str, setting: Setting, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """A batch; the network is moved to where it runs."""
    count, pixels = batch or setting.batch, side or setting.side
    x = torch.randn(count, 3, pixels, pixels, device=setting.device)
    net.to(setting.device)
    if network != "ViT-B/16":
        x = x.to(memory_format=torch.channels_last)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # nn.Module takes it
    return x, torch.randint(10, (count,), device=setting.device)


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(group: list[Row], setting: Setting, rounds: int) -> Iterator[tuple[Row, Times, float]]:
    """The medians of each row, and its share of the first one's; what they keep on the device is gone afterwards."""
    on_gpu = setting.device == "cuda"
    turns = [row.make() for row in group]
    memory = [warmed_up(row, turn, setting) for row, turn in zip(group, turns, strict=True)]
    found: list[list[tuple[float, float]]] = [[] for _ in group]
    for _ in range(rounds):
        for row, turn, times in zip(group, turns, found, strict=True):
            with row.form():
                times.append(timed(turn, on_gpu))
    for place, row in enumerate(group):
        step, host = (statistics.median(one) for one in zip(*found[place], strict=True))
        share = statistics.median(own[0] / first[0] for own, first in zip(found[place], found[0], strict=True))
        with row.form():
            spent = busy(turns[place], on_gpu)
        yield row, Times(step, host, spent, memory[place]), share


def warmed_up(row: Row, turn: Callable[[], object], setting: Setting) -> float:
    """The MiB that a turn has at once, after some turns."""
    on_gpu = setting.device == "cuda"
    with row.form():
        for _ in range(1 if setting.small else 5):
            turn()
        wait(on_gpu)
        if not on_gpu:
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        turn()
        wait(on_gpu)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def timed(turn: Callable[[], object], on_gpu: bool) -> tuple[float, float]:
    """Milliseconds of the device and of the host."""
    if not on_gpu:
        start = time.perf_counter()
        turn()
        spent = 1000 * (time.perf_counter() - start)
        return spent, spent
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait(on_gpu)
    start = time.perf_counter()
    first.record()
    turn()
    last.record()
    host = 1000 * (time.perf_counter() - start)
    wait(on_gpu)
    return first.elapsed_time(last), host


def busy(turn: Callable[[], object], on_gpu: bool) -> float:
    """Milliseconds of all kernels of a turn; on CPU, of all operations."""
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        turn()
        wait(on_gpu)
    events = found.key_averages()
    return sum(one.self_device_time_total if on_gpu else one.self_cpu_time_total for one in events) / 1000


def wait(on_gpu: bool) -> None:
    """Until the device is done."""
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
