"""What runners on onnxruntime have in common: sessions, and arrays that go in and come out. Needs no torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from anytimeify.errors import ArgumentError, ArgumentValueError, MissingExtraError, first_line
from anytimeify.serving.backend import Input

__all__ = ["Arrays", "compute", "input_of", "keep_for_ever", "open_session", "provider_of"]

Provider: TypeAlias = tuple[str, dict[str, str]]

_TYPES = {"float": "float32", "double": "float64"}  # the others have one name
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Arrays:
    """Arrays for whoever gives arrays, and tensors of torch for whoever gives some."""

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


def provider_of(device: str) -> Provider:
    """What onnxruntime calls a device. Raises `MissingExtraError` without onnxruntime, `ArgumentError` for a device
    that it does not know."""
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx", "Running an ONNX file")
    import onnxruntime

    kind, _, number = device.partition(":")
    there = {name: one for name, one in _PROVIDERS.items() if one in onnxruntime.get_available_providers()}
    if kind not in there:
        raise ArgumentError(f"device={device!r}: this onnxruntime runs on {', '.join(there)}")
    return there[kind], {"device_id": number} if number else {}


def open_session(file: Path, provider: Provider, threads: int | None) -> Any:
    """A session of onnxruntime. Raises what onnxruntime does where it does not take the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as it likes
    options.log_severity_level = 4  # fatal errors alone: what it raises is enough
    return onnxruntime.InferenceSession(str(file), options, providers=[provider])


def input_of(entry: Any) -> Input:
    """An input of a session, as it describes it."""
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    sizes = tuple(one if isinstance(one, int) else None for one in entry.shape)
    return Input(entry.name, _TYPES.get(kind, kind), sizes)


def compute(session: Any, wanted: Sequence[str] | None, inputs: dict[str, Any], path: Path) -> list[Any]:
    """Results of a session, by default all. `ArgumentValueError` where onnxruntime refuses the inputs."""
    try:
        return session.run(wanted, inputs)  # type: ignore[no-any-return]  # onnxruntime has no types
    except Exception as error:  # its errors share no class of their own
        raise ArgumentValueError(f"onnxruntime cannot run {path}: {first_line(error)}") from error


def keep_for_ever(session: Any) -> None:
    """The session of a parent process is never ended here: its threads are not here, and it would wait for them
    (onnxruntime 1.31)."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))
