"""How long `transform` takes on backbones of timm, beside what `torch.export` alone takes.

    python benchmarks/transform_time.py --out docs/transform_time.md

Each backbone is exported once on its own (the named alternative, same machine, same process), then transformed with
verification; the table gives both, the analysis alone, and the ratio of everything besides the export to the export.
A second table has networks of torchvision, transformed without verification, beside `torch.export` and, where they are
installed, Torch-Pruning (the dependency graph and one pruned copy) and ModelOpt (its search space and the smallest
network of it). A third one is that of `benchmarks/transform_memory.py`. All times are of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import importlib.util
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.export import Dim

from anytimeify import AnytimeModel, NestedChannels, transform, verification
from anytimeify._torch import prepare_torchvision
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.passes.options import Options
from anytimeify.runtime.compiled import compiled

BACKBONES = {
    "test_resnet": 160,
    "densenet121": 224,
    "efficientvit_m0": 224,
    "ghostnet_050": 224,
    "regnetx_002": 224,
    "shvit_s1": 224,
    "cs3darknet_focus_s": 256,
    "deit_tiny_patch16_224": 224,
    "test_vit": 160,
    "swin_tiny_patch4_window7_224": 224,
    "gcvit_xxtiny": 224,
    "gmlp_ti16_224": 224,
    "mobilevit_xxs": 256,
    "vit_tiny_r_s16_p8_224": 224,
}

OF_TORCHVISION = (
    *("alexnet", "vgg11", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny"),
)


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--models", nargs="*", default=list(BACKBONES))
    arguments = parser.parse_args()
    prepare_torchvision()
    import timm

    torch.set_num_threads(1)
    scheme = NestedChannels(widths=(0.25, 0.5, 1.0))
    capture(nn.Linear(2, 2), (torch.randn(2, 2),))  # the first export of a process loads much of torch
    rows = []
    for name in arguments.models:
        model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        rows.append(measure(name, model, torch.randn(2, *size), scheme))
        print(rows[-1], flush=True)
    ratios, unverified = sorted(row.ratio for row in rows), sorted(row.unverified for row in rows)
    table = "\n".join(
        [
            "| backbone | nodes | torch.export s | capture besides s | analysis s | rewrite s | verify s "
            "| rest / export | MACs at 0.25 |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(str, rows),
        ]
    )
    summary = (
        f"Median of rest / export: {median(ratios):.2f}, worst {ratios[-1]:.2f}; "
        f"without verification: {median(unverified):.2f}, worst {unverified[-1]:.2f}."
    )
    print(table, summary, sep="\n\n")
    if arguments.out:
        others, large = beside_others(scheme), importlib.import_module("transform_memory").table(LARGE)
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        arguments.out.write_text(PAGE.format(table=table, summary=summary, others=others, large=large, **versions))


LARGE = "vit_large_patch16_224"


def beside_others(scheme: NestedChannels) -> str:
    """Networks of torchvision without verification: the second table."""
    import torchvision

    lines = [
        "| network | torch.export s | transform s | consume=True s | transform / export "
        "| Torch-Pruning s | ModelOpt s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in OF_TORCHVISION:
        model, x = getattr(torchvision.models, name)(weights=None), torch.randn(2, 3, 224, 224)
        exported = least(lambda: torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False))  # noqa: B023  # called at once
        transformed = least(lambda: transform(model, scheme, (x,), verify=False))  # noqa: B023  # called at once
        pruned, sampled = other("torch_pruning", prune, model, x), other("modelopt", sample, model, x)
        consumed = least(lambda: transform(model, scheme, (x,), verify=False, consume=True))  # noqa: B023  # called at once
        ratio = transformed / exported
        lines.append(
            f"| {name} | {exported:.2f} | {transformed:.2f} | {consumed:.2f} | {ratio:.2f} | {pruned} | {sampled} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def least(call: Callable[[], object]) -> float:
    """Processor time of the quicker of two calls."""
    seconds = []
    for _ in range(2):
        gc.collect()
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def other(package: str, cut: Callable[[nn.Module, torch.Tensor], object], model: nn.Module, x: torch.Tensor) -> str:
    """What another library takes to cut one copy of a network to half its channels, or how it fails."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return f"{least(lambda: cut(copy.deepcopy(model), x)):.2f}"
    except Exception as error:
        return type(error).__name__


def prune(model: nn.Module, x: torch.Tensor) -> None:
    """Channels of small weights are cut by half everywhere, but for the classes."""
    library = importlib.import_module("torch_pruning")
    heads = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == 1000]
    importance = library.importance.MagnitudeImportance()
    library.pruner.MagnitudePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=heads).step()


def sample(model: nn.Module, _: torch.Tensor) -> None:
    """The smallest network of ModelOpt's own search space, whose channels are halved."""
    library = importlib.import_module("modelopt.torch.nas")
    library.sample(space := library.convert(model, mode="autonas"), sample_func=min)
    library.export(space)


class Row:
    """One line of the table."""

    def __init__(self, name: str, nodes: int, seconds: dict[str, float], share: float) -> None:
        self.name, self.nodes, self.seconds, self.share = name, nodes, seconds, share
        rest = sum(value for key, value in seconds.items() if key != "export")
        self.ratio, self.unverified = (value / seconds["export"] for value in (rest, rest - seconds["verify"]))

    def __str__(self) -> str:
        s = self.seconds
        return (
            f"| {self.name} | {self.nodes} | {s['export']:.2f} | {s['capture']:.2f} | {s['analysis']:.3f} "
            f"| {s['rewrite']:.2f} | {s['verify']:.2f} | {self.ratio:.2f} | {self.share:.1%} |"
        )


def measure(name: str, model: nn.Module, x: torch.Tensor, scheme: NestedChannels) -> Row:
    """Seconds of every step for one backbone."""
    seconds: dict[str, float] = {}

    def clock(step: str, since: float) -> float:
        now = time.process_time()
        seconds[step] = now - since
        return now

    gc.collect()
    model.train()
    start = time.process_time()
    torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    clock("export", start)
    gc.collect()
    start = time.process_time()
    captured = capture(model, (x,))
    start = clock("capture", start)
    seconds["capture"] = max(0.0, seconds["capture"] - seconds["export"])
    axes = analyse(captured.program)
    start = clock("analysis", start)
    net = AnytimeModel(compiled(captured, axes, scheme, scheme.apply(captured, axes), Options()))
    start = clock("rewrite", start)
    verification.verify(net, model)
    clock("verify", start)
    share = net.levels[0].cost.macs / net.levels[-1].cost.macs
    return Row(name, len(captured.program.graph.nodes), seconds, share)


PAGE = """# Time to transform

`python benchmarks/transform_time.py --out docs/transform_time.md`, torch {torch}, Python {python}, processor time on
one thread, widths 0.25, 0.5, 1, verified. "torch.export" is a run of its own on the same backbone; "capture besides" is
what `capture` adds to it (canonical form, a check of the captured graph against the backbone); "analysis" finds the
axes; "rewrite" builds the levels and the module; "verify" runs the backbone, every level and every extract once, the
backbone and the full level on a batch of another size, and one step of training of both.

{table}

{summary}

## Without verification, beside others

Networks of torchvision, `transform(..., verify=False)` to three widths, the quicker of two runs. Torch-Pruning, in the
same run, cuts one copy to half its channels; ModelOpt gives the smallest network of its search space. `consume=True`
takes the backbone's memory over: of `alexnet` and `vgg11`, which are mostly weights, most of the time is that of
copying them.

{others}

## A large network

`python benchmarks/transform_memory.py`: ViT-L/16, `verify=False`. Memory is the most that the process has held since
before the call, less what it held then, over the bytes of the result's parameters. Without `consume` the weights are
copied, for which a machine takes 0.4 s, or up to 3 s in memory that it has not used before: that of `triangular` varied
by a third between runs. Branches draw the weights that they have of their own, half a GB here, by the model's own
initialisers, some of them twice.

{large}
"""

if __name__ == "__main__":
    main()
