"""How long `transform` takes on backbones of timm, beside what `torch.export` alone takes.

    python benchmarks/transform_time.py --out docs/transform_time.md

Each backbone is exported once on its own (the named alternative, same machine, same process), then transformed with
verification; the table gives both, the analysis alone, and the ratio of everything besides the export to the export.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from anytimeify import AnytimeModel, NestedChannels, verification
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


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--models", nargs="*", default=list(BACKBONES))
    arguments = parser.parse_args()
    prepare_torchvision()
    import timm

    scheme = NestedChannels(widths=(0.25, 0.5, 1.0))
    capture(nn.Linear(2, 2), (torch.randn(2, 2),))  # the first export of a process loads much of torch
    rows = []
    for name in arguments.models:
        model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        rows.append(measure(name, model, torch.randn(2, *size), scheme))
        print(rows[-1], flush=True)
    ratios = sorted(row.ratio for row in rows)
    table = "\n".join(
        [
            "| backbone | nodes | torch.export s | capture besides s | analysis s | rewrite s | verify s "
            "| rest / export | MACs at 0.25 |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(str, rows),
        ]
    )
    summary = f"Median of rest / export: {ratios[len(ratios) // 2]:.2f}; worst: {ratios[-1]:.2f}."
    print(table, summary, sep="\n\n")
    if arguments.out:
        arguments.out.write_text(
            PAGE.format(table=table, summary=summary, torch=torch.__version__, python=platform.python_version())
        )


class Row:
    """One line of the table."""

    def __init__(self, name: str, nodes: int, seconds: dict[str, float], share: float) -> None:
        self.name, self.nodes, self.seconds, self.share = name, nodes, seconds, share
        rest = sum(value for key, value in seconds.items() if key != "export")
        self.ratio = rest / seconds["export"]

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
        now = time.perf_counter()
        seconds[step] = now - since
        return now

    gc.collect()
    model.train()
    start = time.perf_counter()
    torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    clock("export", start)
    gc.collect()
    start = time.perf_counter()
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

`python benchmarks/transform_time.py --out docs/transform_time.md`, torch {torch}, Python {python}, 2 CPU cores, widths
0.25, 0.5, 1, verified. "torch.export" is a run of its own on the same backbone; "capture besides" is what `capture`
adds to it (canonical form, a check of the captured graph against the backbone); "analysis" finds the axes; "rewrite"
builds the levels and the module; "verify" runs the backbone, every level and every extract once, the backbone and the
full level on a batch of another size, and one step of training of both.

{table}

{summary}
"""

if __name__ == "__main__":
    main()
