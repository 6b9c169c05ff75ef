"""What levels claim to cost beside what their extracts do, under every scheme.

    python -m benchmarks.costs --out docs/costs.md

Every level is extracted and run on one sample under torch's `FlopCounterMode`; parameters are counted by `numel`, tied
ones once. The page says where the two differ. With `--json FILE`, rows are written to a file as soon as they are known,
and those that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from anytimeify import AnytimeModel, SchemeError, papers, transform
from anytimeify.testing.costs import found_costs
from benchmarks.zoo import build

__all__ = ["BACKBONES", "SCHEMES", "measure", "of_zoo"]

BACKBONES = (
    *("timm:test_vit", "timm:test_vit_relpos", "timm:test_byobnet", "timm:test_nfnet", "timm:test_convnext"),
    *("timm:test_efficientnet", "timm:test_resnet", "timm:test_coatnet", "timm:test_mambaout"),
    *("torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"),
    *("hf:bert", "hf:gpt2", "hf:llama", "hf:t5", "hf:swin", "hf:segformer", "hf:wav2vec2", "hf:whisper"),
)
WIDTHS = "widths=0.25,0.5,1"
SCHEMES = (
    f"nested-channels{{{WIDTHS}}}",
    f"nested-channels{{{WIDTHS},connectivity=triangular}}",
    "nested-weights{densities=0.1,0.3,1}",
    "nested-depth",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches",
    "mutual-distillation",
)
Row = dict[str, Any]


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the rows here, and measure only what is missing"
    )
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--papers", nargs="*", default=list(papers.names()))
    arguments = parser.parse_args()
    file = arguments.json
    rows: list[Row] = json.loads(file.read_text()) if file and file.exists() else []
    for network, scheme, make in _cases(arguments.papers, arguments.backbones):
        if any(row["network"] == network and scheme in ("", row["scheme"]) for row in rows):
            continue
        rows.append(measure(network, scheme, make))
        print(_line(rows[-1]), flush=True)
        if file:
            file.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.out:
        arguments.out.write_text(page(rows))


def _cases(names: list[str], backbones: list[str]) -> Iterator[tuple[str, str, Callable[[], AnytimeModel]]]:
    for name in sorted(names, key=lambda name: "1202" in name):  # the slowest last
        yield name, "", lambda name=name: papers.recipe(name).build(verify=False)  # type: ignore[misc]
    for name in backbones:
        for scheme in SCHEMES:
            yield name, scheme, lambda name=name, scheme=scheme: of_zoo(name, scheme)  # type: ignore[misc]


def of_zoo(name: str, scheme: str) -> AnytimeModel:
    """A backbone under a scheme; two copies of it where the scheme is for two."""
    model, inputs = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the zoos say of themselves when they run
        pair: Any = (model, build(name)[0]) if scheme == "mutual-distillation" else model
        return transform(pair, scheme, inputs, verify=False)


def measure(network: str, scheme: str, make: Callable[[], AnytimeModel]) -> Row:
    """Claimed and found costs of every level that can be extracted, or why the scheme does not apply."""
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        net = make()
    except SchemeError as error:
        return {"network": network, "scheme": scheme, "refused": str(error)}
    levels = [level for level in net.levels if not level.training_only]
    found = [found_costs(net, level) for level in levels]
    return {
        "network": network,
        "scheme": scheme or str(net.scheme),
        "claimed": [(level.cost.macs, level.cost.params) for level in levels],
        "found": [tuple(one) for one in found],
        "seconds": round(time.perf_counter() - start, 1),
    }


def _line(row: Row) -> str:
    if "refused" in row:
        return f"| {row['network']} | `{row['scheme']}` | - | {row['refused'].partition(';')[0][:100]} | | | |"
    claimed, found = row["claimed"], row["found"]
    cells = []
    for kind in (0, 1):
        first, last = (f"{one[kind] / 1e6:,.3f}" for one in (found[0], found[-1]))
        largest = max(abs(one[kind] - other[kind]) for one, other in zip(claimed, found, strict=True))
        cells += [f"{first} to {last}", f"{largest:,}"]
    return f"| {row['network']} | `{row['scheme']}` | {len(found)} | {' | '.join(cells)} |"


def page(rows: list[Row]) -> str:
    """The tables as Markdown."""
    head = (
        "| network | scheme | levels | M MACs found, cheapest to full | largest difference | M parameters found "
        "| largest difference |\n|---|---|---|---|---|---|---|"
    )
    measured = [row for row in rows if "refused" not in row]
    levels = sum(len(row["found"]) for row in measured)
    equal = sum(
        tuple(one) == tuple(other) for row in measured for one, other in zip(row["claimed"], row["found"], strict=True)
    )
    known = set(papers.names())
    parts = [
        "\n".join([head, *(_line(row) for row in rows if (row["network"] in known) == of_papers)])
        for of_papers in (True, False)
    ]
    summary = f"{equal} of {levels} levels of {len(measured)} models cost what they claim, to the last one."
    return PAGE.format(summary=summary, papers=parts[0], zoo=parts[1], torch=torch.__version__)


PAGE = """# Costs of levels, claimed and found

`python -m benchmarks.costs --out docs/costs.md`, torch {torch}. Every level is extracted (not folded) and run on one
sample under torch's `FlopCounterMode`, two of whose operations are one multiply-accumulate; parameters are those of the
extract by `numel`, tied ones once. `Level.cost` is read off the graph, and nothing is run for it. The columns of
differences give the largest one over the levels, in single multiply-accumulates and parameters.

`FlopCounterMode` counts attention where it runs as matrix products, so it is made to. Extracts of `nested-weights` are
dense tensors with zeros: there the entries that are not zero are counted, and of a layer's operations the share that
its entries have. A scheme that does not apply to a network says why.

{summary}

## Networks of the papers

{papers}

## Backbones of timm, torchvision and transformers

{zoo}
"""

if __name__ == "__main__":
    main()
