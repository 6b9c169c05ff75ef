"""Levels in an ONNX file that `net.export` wrote, run by onnxruntime. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytimeify.errors import ArtifactError
from anytimeify.io.files import reading, regular_file
from anytimeify.serving.arrays import Arrays, compute, input_of, keep_for_ever, open_session, provider_of
from anytimeify.serving.backend import Input
from anytimeify.serving.description import KEY, Description, read_description

__all__ = ["OnnxLevels"]


@dataclass(frozen=True)
class OnnxLevels(Arrays):
    """A session of onnxruntime, which several threads may run at once."""

    path: Path
    device: str
    threads: int | None
    session: Any
    description: Description
    inputs: tuple[Input, ...]
    resumable = False

    @classmethod
    def of(cls, path: object, device: str = "cpu", threads: int | None = None) -> OnnxLevels:
        """Raises `ArtifactError` for another file, `MissingExtraError` without onnxruntime, and `ArgumentError` for a
        device that onnxruntime does not know."""
        provider, file = provider_of(device), regular_file(str(path))
        with reading(file):
            session = open_session(file, provider, threads)
            text = session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ArtifactError(f"{file} says nothing of levels: expected an ONNX file that net.export has written")
        *inputs, _ = session.get_inputs()  # the last is the level
        return cls(file, device, threads, session, read_description(text, file), tuple(map(input_of, inputs)))

    def reopened(self) -> OnnxLevels:
        keep_for_ever(self.session)
        return OnnxLevels.of(self.path, self.device, self.threads)

    def run(self, level: int, inputs: Sequence[Any]) -> Any:
        """The prediction; where the model returns several tensors, all of them by their names."""
        names = [entry.name for entry in self.session.get_inputs()]
        given = dict(zip(names, [*inputs, np.array(level)], strict=True))
        results = compute(self.session, None, given, self.path)
        if len(results) == 1:
            return results[0]
        return dict(zip([entry.name for entry in self.session.get_outputs()], results, strict=True))

    def stream(self, inputs: Sequence[Any]) -> Iterator[Any]:
        for level in range(len(self.description.levels)):
            yield self.run(level, inputs)
