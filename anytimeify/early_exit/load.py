"""Reading back what `Staged.export` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from torch import nn

from anytimeify.early_exit.document import MANIFEST, check_file, stage_file
from anytimeify.early_exit.files import OnnxStage, ProgramStage
from anytimeify.early_exit.manifest import decode
from anytimeify.early_exit.network import Staged
from anytimeify.errors import ArtifactError
from anytimeify.io.files import reading
from anytimeify.storage.export import require

__all__ = ["load"]


def load(
    directory: str | os.PathLike[str],
    format: Literal["pt2", "onnx"] | None = None,
    *,
    threads: int | None = None,
    trust_pickle: bool = False,
) -> Staged:
    """Reads a folder that `staged.export(directory)` wrote; the result is called as that was, and has its policy.

    `format`: which files to run, `"pt2"` in torch or `"onnx"` in onnxruntime on the CPU; by default the first that was
    written. `threads`: of onnxruntime, for each operation; by default its own choice. Runs no code from the files,
    unless `trust_pickle=True`, which stages need that call operators of libraries other than torch.
    Raises `ArtifactError` for what is no whole, readable folder, was changed after it was written, or does not hold the
    format.
    """
    folder = Path(directory)
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"'{folder}' is no folder of stages: it has no file {MANIFEST}")
    with reading(file):
        manifest = decode(file.read_text(encoding="utf-8"), str(file))
    kind = format or manifest.formats[0]
    if kind not in manifest.formats:
        raise ArtifactError(f"'{folder}' holds stages as {', '.join(manifest.formats)}, not as {kind!r}")
    require(kind)
    with reading(folder):
        files = [folder / stage_file(index, kind) for index in range(len(manifest.chain.stages))]
        for one in files:
            check_file(manifest.checksums, one)
        return Staged(
            manifest.chain, [_stage(one, kind, threads, trust_pickle) for one in files], policy=manifest.policy
        )


def _stage(file: Path, kind: str, threads: int | None, trust_pickle: bool) -> nn.Module:
    if not file.is_file():
        raise ArtifactError(f"'{file}' is missing: the folder is not whole")
    return ProgramStage(file, trust_pickle=trust_pickle) if kind == "pt2" else OnnxStage(file, threads)
