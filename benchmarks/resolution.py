"""What nested resolution makes of backbones: costs of the levels, and how they differ from the backbone at that size.

python -m benchmarks.resolution --out docs/resolution.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import interpolate

import anytimeify
from anytimeify import NestedResolution, SchemeError, transform
from anytimeify.verification import difference

BACKBONES = (
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:vgg11_bn", "torchvision:mobilenet_v3_small"),
    *("torchvision:efficientnet_b0", "torchvision:densenet121", "torchvision:regnet_y_400mf", "torchvision:vit_b_16"),
    *("timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "timm:poolformer_s12"),
    *("timm:pvt_v2_b0", "timm:pit_ti_224", "timm:coat_lite_tiny", "torchvision:swin_t", "timm:resmlp_12_224"),
)
PAGE = """# Nested resolution on backbones

`NestedResolution(sizes=(0.5, 0.75, 1.0))`, verified: every level equals its extract, the full level the backbone, and a
lower level the backbone on the resized input, wherever that takes inputs of other sizes. `difference`: the largest one
between a level and the backbone on the resized input, relative to the largest element, of 0.5 and 0.75. A dash: the
backbone refuses inputs of other sizes, and the level interpolates its position embeddings.

    python -m benchmarks.resolution --out docs/resolution.md

| backbone | input | MACs at 0.5 | at 0.75 | at 1 | difference |
|---|---|---|---|---|---|
{rows}

Refused, with the reason:

{refused}
"""


def main(out: Annotated[Path, typer.Option(help="The page to write.")]) -> None:
    """Transforms every backbone and writes the page."""
    rows, refused = [], []
    for name in BACKBONES:
        torch.manual_seed(0)
        source = anytimeify.source(name)
        try:
            rows.append(row(name, source))
        except SchemeError as error:
            refused.append(f"- `{name}`: {error}")
        print((rows + refused)[-1], flush=True)
    out.write_text(PAGE.format(rows="\n".join(rows), refused="\n".join(refused)))


def row(name: str, source: anytimeify.Source) -> str:
    """One row of the table. Raises `SchemeError` where the scheme refuses the backbone."""
    net = transform(source, NestedResolution()).eval()
    (x,) = net.captured.example_inputs
    model = source.model.eval()
    with torch.no_grad():
        levels = net(x).levels
        errors = [at(model, x, size, level) for size, level in zip((0.5, 0.75), levels[:2], strict=True)]
    macs = " | ".join(f"{level.cost.macs / 1e6:.1f} M" for level in net.levels)
    shown = ", ".join("-" if error is None else f"{error:.1g}" for error in errors)
    return f"| `{name}` | {tuple(x.shape[1:])} | {macs} | {shown} |"


def at(model: nn.Module, x: Tensor, size: float, level: Tensor) -> float | None:
    """How a level differs from the backbone on the resized input; None where that takes inputs of one size."""
    small = interpolate(x, [round(n * size) for n in x.shape[2:]], mode="bilinear")
    try:
        return difference(model(small), level)
    except (AssertionError, RuntimeError, ValueError):
        return None


if __name__ == "__main__":
    typer.run(main)
