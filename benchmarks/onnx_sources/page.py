"""The page on ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnxruntime
import torch

from anytimeify.capture.sources.onnx.read import OPSETS
from anytimeify.capture.sources.onnx.table import rows as rows_of_operators
from anytimeify.capture.sources.onnx.table import rows_by_operator
from benchmarks.onnx_sources.exports import ATTENTION, CONVERTED, EXPORTS
from benchmarks.onnx_sources.networks import FILES, NETWORKS
from benchmarks.onnx_sources.rows import SCHEMES, Row

__all__ = ["PAGE", "operators", "page"]

PAGE = """# ONNX files

    anytimeify inspect model.onnx
    anytimeify convert model.onnx --input x=2x3x224x224 --scheme 'nested-channels{{widths=0.25,0.5,1}}' --out net

In Python, `transform(anytimeify.source("model.onnx"), scheme)`. Needs the extra `onnx`. The file becomes a module
of torch functions, which is captured as any other ([decision 41](decisions/0041-onnx-files-become-modules.md)).

* **Inputs.** Example inputs are made from the sizes that the file says; an open first size is the batch. Other open
  sizes are given: `--input x=2x3x224x224`, `source("model.onnx", inputs={{"x": (2, 3, 224, 224)}})`, or
  `example_inputs`. An input without axes, such as a sample rate, can be given its value, `--input sr=16000`, and is
  a constant then. The model is called by position, or by the names of the file's inputs.
* **Batch.** Dynamic where the file's is. One that is written into the file is made dynamic where another size
  agrees with the file, sample by sample; else the result takes batches of that size, and says so.
* **Tensors.** Floating-point tensors of several elements, and all of layers, are parameters under their names;
  running statistics are buffers; masks, single numbers, integers and sizes are constants. A `MatMul` with a weight
  is a linear layer, whose weight is stored as torch has it, `[out, in]`.
* **Training.** Batch norms and dropout train. Where a convolution has a bias and no norm behind it, as where an
  exporter folded a batch norm into it, levels have no norm of their own there; the report says how many there are.
* **Refused**, by name and all at once: operators without a row below, quantised ones (take the file that they were
  made from), attributes that a row does not know. Branches and loops are unrolled where sizes decide on them, and
  refused where values do.
* **Safety.** No code runs. Tensors outside of the file are read from its folder only.

## Operators

Of the versions {first} to {last} of the standard operators. In brackets: the version that an operator came
with, and those in which what it computes, or how it is written, changes.

| family | operators |
| --- | --- |
{operators}

## What was tried

    python -m benchmarks.onnx_sources --out docs/onnx.md

Every file is read, and its outputs are compared with onnxruntime's, those of a network also with the network's own
(*difference*: the largest, relative to the largest element, of probabilities absolute). Then it is transformed under
{schemes}, each verified. *MACs*: of the cheapest level
of the first scheme, as a multiple of those of the torch network transformed directly.
Torch {torch}, onnx {onnx}, onnxruntime {onnxruntime}.

### Networks through the exporters of torch

Random weights, small images.
{summary}

* *{attention}*: TorchScript's exporter knows `scaled_dot_product_attention` from version 14 on; below, the
  network multiplies queries, keys and values itself (`attn_implementation="eager"` of transformers, `fused_attn=False`
  of timm).
* *{converted}*: the dynamo exporter writes version 18 and has onnx convert it to 17. Where onnx refuses, it leaves
  the file at 18; there `benchmarks/onnx_sources/older.py` converts it, and onnx's checker accepts it as 17.

| network | exporter, version | difference | MACs | channels | ensemble |
| --- | --- | --: | --: | --- | --- |
{networks}

### Files of packages on PyPI

| package | file | difference | channels: MACs of the levels | ensemble |
| --- | --- | --: | --- | --- |
{files}
"""


def page(rows: Mapping[tuple[str, str], Row]) -> str:
    """The whole page, with the rows that there are, in the order of the tables of networks and files."""
    exported = [found for name in NETWORKS for way in EXPORTS if (found := rows.get((name, str(way))))]
    own = [found for one in FILES if (found := rows.get((one.package, one.member)))]
    return PAGE.format(
        schemes=" and ".join(f"`{scheme}`" for scheme in SCHEMES.values()),
        torch=torch.__version__,
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
        attention=ATTENTION,
        converted=CONVERTED,
        first=OPSETS[0],
        last=OPSETS[-1],
        operators=operators(),
        summary=_summary(exported),
        networks="\n".join(map(_network_line, exported)),
        files="\n".join(map(_file_line, own)),
    )


def _summary(rows: Sequence[Row]) -> str:
    written = [row for row in rows if not row.not_exported]
    good = [row for row in written if row.holds]
    difference = max((row.difference for row in good), default=0.0)
    ratio = max((row.ratio for row in good), default=1.0)
    return (
        f"{len(good)} of {len(written)} files have equal outputs and verify under both schemes: the largest difference "
        f"is {difference:.0e}, the largest multiple of MACs {ratio:.3f}."
    )


def _network_line(row: Row) -> str:
    way = f"{row.file}, {row.took}" if row.took else row.file
    if row.not_exported:
        return f"| {row.source} | {way} | not exported: {row.not_exported} | | | |"
    ratio = f"{row.ratio:.3f}" if row.macs else ""
    return f"| {row.source} | {way} | {row.difference:.0e} | {ratio} | {row.channels} | {row.ensemble} |"


def _file_line(row: Row) -> str:
    channels = ", ".join(f"{macs / 1e6:.2f} M" for macs in row.macs) or row.channels
    return f"| {row.source.replace('==', ' ')} | {row.file} | {row.difference:.0e} | {channels} | {row.ensemble} |"


def operators() -> str:
    """The rows of the table of operators, those of ours left out."""
    own = {name for name, found in rows_by_operator().items() if not onnx.defs.has(name)}
    families: dict[str, dict[str, list[int]]] = {}
    for family, row in rows_of_operators():
        if row.operator not in own:
            families.setdefault(family.replace("_", " "), {}).setdefault(row.operator, []).append(row.since)
    return "\n".join(
        f"| {family} | {', '.join(f'{name}{_since(versions)}' for name, versions in sorted(found.items()))} |"
        for family, found in families.items()
    )


def _since(versions: list[int]) -> str:
    """Nothing where an operator is as it was in the first version that is read."""
    shown = [max(version, OPSETS[0]) for version in sorted(versions)]
    return "" if shown == [OPSETS[0]] else f" ({', '.join(map(str, shown))})"
