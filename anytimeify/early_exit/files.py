"""Stages that were read from files: modules that are called like the stage that was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from anytimeify.capture import load_exported
from anytimeify.errors import ArgumentError, ArtifactError
from anytimeify.storage.export import onnx_session

__all__ = ["FORMATS", "OnnxStage", "ProgramStage"]


class ProgramStage(nn.Module):
    """A stage that torch.export wrote."""

    def __init__(self, file: Path, *, trust_pickle: bool = False) -> None:
        super().__init__()
        # Without guards: what a stage hands on has the types that the next one was exported with.
        self.program = load_exported(file, trust_pickle=trust_pickle).module(check_guards=False)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """What the stage gives."""
        return tuple(self.program(*values))

    def train(self, mode: bool = True) -> Self:
        """Does nothing: the file holds the evaluation form alone."""
        return self


class OnnxStage(nn.Module):
    """A stage in onnxruntime, on the CPU."""

    def __init__(self, file: Path, threads: int | None = None) -> None:
        super().__init__()
        self.file = file
        try:
            self.session: Any = onnx_session(file, threads)
        except Exception as error:  # its errors share no class of their own
            raise ArtifactError(
                f"'{file}' is damaged, or of no version that this onnxruntime reads: {error}"
            ) from error
        self._names = [entry.name for entry in self.session.get_inputs()]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """What the stage gives."""
        given = {name: value.detach().cpu().numpy() for name, value in zip(self._names, values, strict=True)}
        return tuple(map(torch.from_numpy, self.session.run(None, given)))

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxStage:
        return self  # a session is never changed

    def __reduce__(self) -> Any:
        raise ArgumentError(f"a stage in onnxruntime is not pickled: load {self.file.name} again in the other process")


FORMATS: Mapping[str, Callable[..., nn.Module]] = {"pt2": ProgramStage, "onnx": OnnxStage}
"""What runs a file, by its suffix."""
