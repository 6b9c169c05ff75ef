"""The project's own objectives as plain data (what JSON can hold) and tensors, and back.

An objective is its class, the arguments that make it again, and whatever parameters and buffers it has besides: a
weight that is learned. Of a loss of anybody else only its name is kept.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anytimeify import losses
from anytimeify.errors import AnytimeWarning, ArtifactError
from anytimeify.ir import names
from anytimeify.losses import Objective
from anytimeify.taxonomy import Taxonomy

__all__ = ["decode_loss", "encode_loss", "loss_tensors"]

KINDS: Mapping[str, type[Objective]] = {
    name: kind
    for name, kind in vars(losses).items()
    if isinstance(kind, type) and issubclass(kind, Objective) and not inspect.isabstract(kind)
}


def encode_loss(loss: nn.Module) -> dict[str, Any]:
    """An objective without its tensors, or the name of a loss that is none of ours, of which a warning says that it is
    left out."""
    foreign = [part for part in _losses(loss) if not _is_own(part)]
    if not foreign:
        return _encode(loss)
    name = f"{type(foreign[0]).__module__}.{type(foreign[0]).__qualname__}"
    warnings.warn(
        f"the file does not hold the loss: {name} is not one of anytimeify.losses. Give it to anytimeify.load(path, "
        "loss=...)",
        AnytimeWarning,
        stacklevel=4,  # who calls net.save
    )
    return {"foreign": name}


def loss_tensors(loss: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong in a file: parameters, and the buffers that a state dict has. None of a foreign loss."""
    if not all(map(_is_own, _losses(loss))):
        return {}
    kept = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
    return {name: tensor for name, tensor in kept.items() if name in loss.state_dict()}


def decode_loss(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | str:
    """The inverse; the name of a loss that was not ours. `ArtifactError` for what is no objective."""
    if "foreign" in data:
        return str(data["foreign"])
    loss = _decode(data)
    for name, tensor in tensors.items():
        path, attribute = names.split(name)
        owner = loss.get_submodule(path)
        if not attribute.isidentifier() or attribute.startswith("_") or hasattr(type(owner), attribute):
            raise ArtifactError(f"the loss cannot have a tensor {name!r}")
        owner.__dict__.pop(attribute, None)  # what the arguments gave, where a parameter took its place
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(attribute, tensor)
        else:
            owner.register_buffer(attribute, tensor)
    return loss


def _losses(loss: nn.Module) -> list[nn.Module]:
    """A loss and those that it is made of."""
    return [part for part in loss.modules() if type(part) is not nn.ModuleDict]


def _is_own(loss: nn.Module) -> bool:
    return type(loss) in KINDS.values()


def _encode(loss: nn.Module) -> dict[str, Any]:
    assert isinstance(loss, Objective)
    options = {name: value for name, value in loss.options().items() if not isinstance(value, Tensor)}
    return {"kind": type(loss).__name__, "options": {name: _encode_value(value) for name, value in options.items()}}


def _encode_value(value: Any) -> Any:
    """An argument: what JSON has no word for is a dict of one entry."""
    if isinstance(value, nn.ModuleDict):
        return {"losses": {name: _encode(one) for name, one in value.items()}}
    if isinstance(value, nn.Module):
        return {"loss": _encode(value)}
    if isinstance(value, Taxonomy):
        return {"taxonomy": value.data()}
    if isinstance(value, tuple | list):
        return [_encode_value(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactError(f"the loss has an argument of type {type(value).__name__}, which cannot be saved: {value!r}")


def _decode(data: Any) -> Objective:
    kind = KINDS.get(data["kind"])
    if kind is None:
        raise ArtifactError(f"{data['kind']!r} is not one of anytimeify.losses of this version")
    known = inspect.signature(kind).parameters
    unknown = [name for name in data["options"] if name not in known]
    if unknown:
        raise ArtifactError(f"{kind.__name__} has no option {unknown[0]!r} in this version")
    return kind(**{name: _decode_value(value) for name, value in data["options"].items()})


def _decode_value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decode_value, value))
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "losses":
        return {name: _decode(one) for name, one in held.items()}
    if kind == "taxonomy":
        return Taxonomy.from_data(held)
    if kind != "loss":
        raise ArtifactError(f"an argument of a loss is a {kind!r}")
    return _decode(held)
