"""`hf:PATH`: a model of transformers from a local folder, or from a configuration alone. Nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify._torch import prepare_torchvision
from anytimeify.capture.inputs import CallInputs, image
from anytimeify.capture.on_meta import parameters_on_meta
from anytimeify.capture.sources.source import Source, SourceKind
from anytimeify.errors import ArtifactError, CaptureError, MissingExtraError

__all__ = ["KIND"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def _load(path: str, trust_pickle: bool) -> Source:
    kind, config, file = _configured(path)
    folder, weights = file.parent, _has_weights(file.parent)
    with _loading(kind, folder):
        model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True) if weights else kind(config)
    return Source(model, None, _name(path))


def _pretrained(path: str) -> Source:
    _, _, file = _configured(path)
    if not _has_weights(file.parent):
        raise ArtifactError(f"'{file.parent}' holds no weights: expected {' or '.join(_WEIGHTS)} beside {file.name}.")
    return _load(path, False)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHTS)


def _shapes(path: str) -> Source:
    """The model of a configuration, its parameters on the meta device."""
    kind, config, file = _configured(path)
    with _loading(kind, file.parent), parameters_on_meta():
        model = kind(config)
    return Source(model, None, _name(path))


@contextmanager
def _loading(kind: Any, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"'{folder}' cannot be loaded as {kind.__name__} ({type(error).__name__}: {first})."
        ) from error


def _name(path: str) -> str:
    return Path(path).stem if Path(path).is_file() else Path(path).name


def _configured(path: str) -> tuple[Any, Any, Path]:
    """The class of a model, its configuration, and the file that this is in."""
    place = Path(path)
    file = place / "config.json" if place.is_dir() else place
    if not file.is_file():
        raise ArtifactError(
            f"There is no '{file}'. 'hf:' takes a local folder with config.json, or a configuration file; "
            "it downloads nothing."
        )
    prepare_torchvision()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "zoo", f"The source 'hf:{path}'") from error
    try:
        config = transformers.AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"'{file}' is no configuration of transformers {transformers.__version__}: {first}"
        ) from error
    return _class(transformers, config, file), config, file


def _class(transformers: Any, config: Any, file: Path) -> Any:
    names = config.architectures or []
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if names:
        raise CaptureError(
            f"'{file}' asks for {', '.join(names)}, which transformers {transformers.__version__} does not have."
        )
    raise CaptureError(f'\'{file}\' names no architecture. Add "architectures": ["...ForImageClassification"] to it.')


def _inputs(model: nn.Module) -> CallInputs | None:
    """An image of the configured size, or `dummy_inputs`."""
    if not any(base.__module__.partition(".")[0] == "transformers" for base in type(model).__mro__):
        return None
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        images = image(model, int(getattr(config, "num_channels", 3)), height, width)
        return CallInputs((), {"pixel_values": images.args[0]})
    dummies = getattr(model, "dummy_inputs", None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(dummies, Mapping) and dummies:
        # a cache among the results is no tensor, and there is none to fill
        without = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in dummies.items()}
        return CallInputs((), {**given, **without})
    return None


KIND = SourceKind("hf:PATH", _load, prefix="hf", inputs=_inputs, shapes=_shapes, pretrained=_pretrained)
