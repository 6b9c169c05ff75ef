"""The page on ONNX files."""

from __future__ import annotations

import onnx

from anytimeify.capture.sources.onnx.read import OPSETS
from anytimeify.capture.sources.onnx.table import rows, rows_by_operator

__all__ = ["PAGE", "operators"]

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

Every file is read, and its outputs are compared with onnxruntime's (*difference*: the largest, relative to the largest
element, of probabilities absolute). One of each exporter, and every file of a package, is transformed under
{schemes}, verified. *MACs*: of the cheapest level of the first scheme, as a multiple of those of the torch network
transformed directly. Torch {torch}.

### Networks through the exporters of torch

Random weights, small images. *not exported*: by torch, in that version.

| network | exporter, version | difference | MACs | channels | ensemble |
| --- | --- | --: | --: | --- | --- |
{networks}

### Files of packages on PyPI

| package | file | difference | channels: MACs of the levels | ensemble |
| --- | --- | --: | --- | --- |
{files}
"""


def operators() -> str:
    """The rows of the table of operators, those of ours left out."""
    own = {name for name, found in rows_by_operator().items() if not onnx.defs.has(name)}
    families: dict[str, dict[str, list[int]]] = {}
    for family, row in rows():
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
