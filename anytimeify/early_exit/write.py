"""A folder of stages: one file for each stage and format, compared with the stage, and what they hand on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from anytimeify.capture.inputs import CallInputs, repeated
from anytimeify.early_exit.cascade import Chain, Stage
from anytimeify.early_exit.document import MANIFEST, stage_file
from anytimeify.early_exit.files import FORMATS
from anytimeify.early_exit.manifest import encode
from anytimeify.early_exit.policies import ExitPolicy
from anytimeify.errors import ArgumentError, ArtifactError
from anytimeify.io.files import new_folder
from anytimeify.ir import TensorType
from anytimeify.storage.export import compare, exported, onnx_refusals, onnx_session, quiet, require
from anytimeify.storage.onnx_model import onnx_model, save_onnx

__all__ = ["write"]


def write(
    directory: str | os.PathLike[str],
    formats: Sequence[str],
    chain: Chain,
    stages: Sequence[nn.Module],
    example_inputs: tuple[Tensor, ...],
    policy: ExitPolicy | None,
    *,
    force: bool = False,
) -> None:
    """Writes the folder, whole or not at all. Raises as `Staged.export` says."""
    kinds = (formats,) if isinstance(formats, str) else tuple(formats)
    unknown = [kind for kind in kinds if kind not in FORMATS]
    if unknown or not kinds:
        raise ArgumentError(f"formats={formats!r}: expected some of {', '.join(FORMATS)}")
    for kind in kinds:
        require(kind)
    encode(chain, kinds, policy)  # refuses before anything is written
    if force:
        _refuse_other_folders(Path(directory))
    with new_folder(directory, replace=force) as folder, quiet():
        cases = _cases(chain, stages, example_inputs)
        for index, (stage, module) in enumerate(zip(chain.stages, stages, strict=True)):
            for kind in kinds:
                _write_stage(
                    chain, stage, module, [case[index] for case in cases], kind, folder / stage_file(index, kind)
                )
        (folder / MANIFEST).write_text(encode(chain, kinds, policy, folder), encoding="utf-8")


def _refuse_other_folders(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ArtifactError(f"'{folder}' holds no {MANIFEST}: only a folder of stages is replaced. Remove it yourself.")


# For one batch: what every stage reads and gives.
_Case = list[tuple[list[Tensor], list[Tensor]]]


def _cases(chain: Chain, stages: Sequence[nn.Module], example_inputs: tuple[Tensor, ...]) -> list[_Case]:
    """At the size of the example batch, which is at least 2, and, where the batch is dynamic, at one more."""
    if chain.batch is None:
        return [_values(chain, stages, example_inputs)]
    inputs = repeated(CallInputs(example_inputs, {})).args
    if chain.batch_range[1] == CallInputs(inputs, {}).batch:
        return [_values(chain, stages, inputs)]
    longer = tuple(
        tensor if (dim := chain.sample_dim(name)) is None else torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
        for name, tensor in zip(chain.inputs, inputs, strict=True)
    )
    return [_values(chain, stages, batch) for batch in (inputs, longer)]


def _values(chain: Chain, stages: Sequence[nn.Module], inputs: Sequence[Tensor]) -> _Case:
    known = dict(zip(chain.inputs, inputs, strict=True))
    case: _Case = []
    with torch.no_grad():
        for stage, module in zip(chain.stages, stages, strict=True):
            reads = [known[name] for name in stage.reads]
            gives = list(module(*reads))
            known.update(zip(stage.gives, gives, strict=True))
            case.append((reads, gives))
    return case


def _write_stage(
    chain: Chain,
    stage: Stage,
    module: nn.Module,
    cases: Sequence[tuple[list[Tensor], list[Tensor]]],
    kind: str,
    file: Path,
) -> None:
    shapes = tuple(_dynamic(chain.values[name]) for name in stage.reads)
    program = exported(module, CallInputs(tuple(cases[0][0]), {}), shapes)
    if kind == "onnx":
        save_onnx(onnx_model(program, file.name, inputs=stage.reads, outputs=stage.gives), file)
    else:
        torch.export.save(program, file)
    if kind == "onnx":
        with onnx_refusals():
            onnx_session(file)
    # What was just written is our own, operators of other libraries included.
    run = FORMATS[kind](file, trust_pickle=True) if kind == "pt2" else FORMATS[kind](file)
    with torch.no_grad():
        for reads, gives in cases:
            compare(file.name, reads, gives, run(*reads))


def _dynamic(kind: TensorType) -> dict[int, Dim]:
    return {dim: Dim.DYNAMIC for dim, size in enumerate(kind.shape) if not size.static}
