"""What networks of several levels cost on a GPU beside their backbones: steps of training, evaluation, memory.

    python -m benchmarks.gpu --out docs/gpu_time.md
    python -m benchmarks.gpu --device cpu --small                     # whether it runs, not how fast

ResNet-50 (channels-last) and ViT-B/16 under bfloat16 autocast, batch 64, 224 pixels, and fused ensembles of 16 leaves
at batch 128. Norms: forward and backward of a layer norm of the ViT, beside that of all levels by operations of torch
(masked) and by Triton (kernel). Every row is the median of several turns between two events of the device, after a
warm-up. Host: until Python is done with a step, the device still running; where that is near the time of the step, the
device waits for Python. Busy: the time of all kernels by the profiler. Memory: the most that a turn has at once beside
weights and gradients. Share: of the time of the row `plain` of the same network and kind of step.

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

from anytimeify import HierarchicalEnsemble, NestedChannels, kernels, transform
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
    kind: str = "training"  # rows of a kind are compared with the plain one


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
    began, plain, left_out = time.monotonic(), {}, []
    for row in rows(setting):
        if time.monotonic() - began > options.budget:
            left_out.append(f"{row.network}, {row.name}")
            continue
        times = measured(row, setting, rounds)
        if row.name.startswith("plain"):
            plain[row.network, row.kind] = times.step
        against = plain.get((row.network, row.kind))
        share = f"{times.step / against:.2f}" if against else ""
        numbers = f"{times.step:.1f} | {share} | {times.host:.1f} | {times.busy:.1f} | {times.memory:.0f}"
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


def rows(setting: Setting) -> Iterator[Row]:
    """Everything, what compiles last."""
    compiled: list[Row] = []
    for network in ("ResNet-50", "ViT-B/16"):
        own = list(widths(network, setting))
        yield from (row for row in own if "compiled" not in row.name)
        compiled += [row for row in own if "compiled" in row.name]
    yield from norms(setting)
    yield from ensembles(setting)
    if not setting.small:
        yield from compiled


def widths(network: str, setting: Setting) -> Iterator[Row]:
    """Four widths of a network, in one pass and as networks of their own."""
    model = backbone(network, setting)
    example = (torch.randn(2, 3, setting.side, setting.side),)
    triangular = transform(model, NestedChannels(WIDTHS, connectivity="triangular"), example, verify=False)
    dense = transform(copy.deepcopy(model), NestedChannels(WIDTHS), example, verify=False)

    def training(net: nn.Module, *, compiled: bool = False) -> Callable[[], Callable[[], object]]:
        return lambda: trainer(net, network, setting, compiled=compiled)

    yield Row(network, "plain", training(model))
    yield Row(network, "triangular, masked", training(triangular), lambda: kernels.form("masked"))
    yield Row(network, "triangular, measured", training(triangular), lambda: kernels.form("measured"))
    yield Row(network, "dense, four widths", training(dense))
    yield Row(network, "plain, forward", lambda: evaluator(model, network, setting), kind="forward")
    for level in range(len(WIDTHS)):
        small = triangular.extract(level)
        yield Row(
            network,
            f"extract of width {WIDTHS[level]:g}",
            lambda small=small: evaluator(small, network, setting),  # type: ignore[misc]
            kind="forward",
        )
    yield Row(network, "plain, compiled", training(model, compiled=True), kind="compiled")
    yield Row(network, "triangular, compiled", training(triangular, compiled=True), kind="compiled")


def norms(setting: Setting) -> Iterator[Row]:
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
    yield Row(network, "plain", lambda: turn(False), kind="norm")
    yield Row(network, "triangular, masked", lambda: turn(True), lambda: kernels.form("masked"), kind="norm")
    yield Row(network, "triangular, kernel", lambda: turn(True), lambda: kernels.form("blocks"), kind="norm")
    yield Row(network, "triangular, measured", lambda: turn(True), lambda: kernels.form("measured"), kind="norm")


def ensembles(setting: Setting) -> Iterator[Row]:
    """A fused ensemble of 16 leaves of a network for 32 pixels, beside the network itself."""
    chosen = recipe("hne/resnet50-cifar")
    cuts = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    net = transform(chosen.backbone, HierarchicalEnsemble(cuts=cuts), chosen.example_inputs, verify=False)
    network, batch = "resnet50-cifar", 2 if setting.small else 128
    plain = chosen.backbone
    for name, one in (("plain", plain), ("ensemble of 16, fused", net)):
        for kind in ("forward", "training"):
            make = evaluator if kind == "forward" else trainer
            yield Row(
                network,
                f"{name}, {kind}",
                lambda make=make, one=one: make(one, network, setting, batch=batch, side=32),  # type: ignore[misc]
                kind=kind,
            )


def backbone(network: str, setting: Setting) -> nn.Module:
    """A network of timm."""
    import timm

    if network == "ResNet-50":
        layers = (1, 1, 1, 1) if setting.small else (3, 4, 6, 3)
        model: nn.Module = timm.create_model("resnet50", layers=layers)
    else:
        model = timm.create_model("vit_base_patch16_224", **(SMALL_VIT if setting.small else {}))
    return model


def trainer(
    net: nn.Module, network: str, setting: Setting, *, compiled: bool = False, batch: int = 0, side: int = 0
) -> Callable[[], object]:
    """A step of training without the optimiser: all levels, their mean loss, backward."""
    x, target = inputs(net, network, setting, batch, side)
    run: Any = torch.compile(net.train()) if compiled else net.train()

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


def measured(row: Row, setting: Setting, rounds: int) -> Times:
    """The medians of a row; what it keeps on the device is gone afterwards."""
    on_gpu = setting.device == "cuda"
    with row.form():
        turn = row.make()
        for _ in range(1 if setting.small else 5):
            turn()
        wait(on_gpu)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        times = [timed(turn, on_gpu) for _ in range(rounds)]
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else 0.0
        spent = busy(turn, on_gpu)
    step, host = (statistics.median(one) for one in zip(*times, strict=True))
    return Times(step, host, spent, memory)


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
