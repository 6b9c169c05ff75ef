"""Levels in an ONNX file that `net.export` wrote, run by onnxruntime. Needs no torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from anytimeify.errors import ArgumentError, ArgumentValueError, ArtifactError, MissingExtraError, first_line
from anytimeify.io.files import reading, regular_file
from anytimeify.serving.backend import Input
from anytimeify.serving.description import KEY, Description, read_description

__all__ = ["OnnxLevels"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {"float": "float32", "double": "float64"}  # the others have one name


@dataclass(frozen=True)
class OnnxLevels:
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
        if find_spec("onnxruntime") is None:
            raise MissingExtraError("onnxruntime", "onnx", "Running an ONNX file")
        file = regular_file(str(path))
        provider = _provider(device)
        with reading(file):
            session = _session(file, provider, threads)
            text = session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ArtifactError(f"{file} says nothing of levels: expected an ONNX file that net.export has written")
        *inputs, _ = session.get_inputs()  # the last is the level
        return cls(file, device, threads, session, read_description(text, file), tuple(map(_input, inputs)))

    def reopened(self) -> OnnxLevels:
        """The session of the parent process is kept for ever: its threads are not here, and ending it waits for them
        (onnxruntime 1.31)."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.session))
        return OnnxLevels.of(self.path, self.device, self.threads)

    def taken(self, value: Any, input: Input) -> Any:
        """An array of what is one, or a tensor of torch; numbers and lists take the type of the input."""
        if _is_tensor(value):
            return value.detach().cpu().numpy()
        return value if isinstance(value, np.ndarray) else np.asarray(value, input.dtype)

    def stacked(self, samples: Sequence[Any]) -> Any:
        return np.stack(samples)

    def given(self, value: Any, asked: Sequence[Any]) -> Any:
        """Tensors of torch for whoever gave some."""
        if not any(map(_is_tensor, asked)):
            return value
        torch = sys.modules["torch"]
        if isinstance(value, dict):
            return {name: torch.from_numpy(array) for name, array in value.items()}
        return torch.from_numpy(value)

    def run(self, level: int, inputs: Sequence[Any]) -> Any:
        """The prediction; where the model returns several tensors, all of them by their names."""
        names = [entry.name for entry in self.session.get_inputs()]
        try:
            results = self.session.run(None, dict(zip(names, [*inputs, np.array(level)], strict=True)))
        except Exception as error:  # its errors share no class of their own
            raise ArgumentValueError(f"onnxruntime cannot run {self.path}: {first_line(error)}") from error
        if len(results) == 1:
            return results[0]
        return dict(zip([entry.name for entry in self.session.get_outputs()], results, strict=True))

    def stream(self, inputs: Sequence[Any]) -> Iterator[Any]:
        for level in range(len(self.description.levels)):
            yield self.run(level, inputs)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """What onnxruntime calls a device."""
    import onnxruntime

    kind, _, number = device.partition(":")
    there = {name: one for name, one in _PROVIDERS.items() if one in onnxruntime.get_available_providers()}
    if kind not in there:
        raise ArgumentError(f"device={device!r}: this onnxruntime runs on {', '.join(there)}")
    return there[kind], {"device_id": number} if number else {}


def _session(file: Path, provider: tuple[str, dict[str, str]], threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as it likes
    options.log_severity_level = 4  # fatal errors alone: what it raises is enough
    return onnxruntime.InferenceSession(str(file), options, providers=[provider])


def _input(entry: Any) -> Input:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    return Input(
        entry.name, _TYPES.get(kind, kind), tuple(one if isinstance(one, int) else None for one in entry.shape)
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))
