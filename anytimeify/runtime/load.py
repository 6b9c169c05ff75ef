"""`save` and `load`: an anytime model in one file, without pickle and without the backbone's class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.errors import AnytimeWarning, ArtifactError
from anytimeify.io.files import reading
from anytimeify.runtime.compiled import compiled
from anytimeify.runtime.model import AnytimeModel
from anytimeify.storage.models import read

__all__ = ["load", "save"]


def save(net: AnytimeModel, path: str | os.PathLike[str]) -> None:
    """Writes the backbone's graph, the scheme, all tensors and the loss; replaces a file when the new one is whole.

    A loss that is not one of `anytimeify.losses` is left out, with an `AnytimeWarning`. Raises `ArtifactError` where
    nothing can be written, `SchemeError` for a scheme that could not be read back.
    """
    net.save(path)


def load(path: str | os.PathLike[str], *, loss: nn.Module | None = None) -> AnytimeModel:
    """Reads what `net.save(path)` wrote: applies the scheme to the saved graph again and fills in the tensors.

    Runs no code from the file. Tensors are those of the saved model, bit for bit; outputs are, where they are computed
    the same way, and within rounding elsewhere. Parameters come in the order that they had, so that the state of an
    optimizer fits. The model comes in eval mode, with the loss it was saved with unless another is given. Raises
    `ArtifactError` for what is no whole, readable file, or was changed after it was written.
    """
    with reading(path):
        stored = read(path)
        axes = analyse(stored.captured.program)
        rewritten = stored.options.apply(stored.scheme, stored.captured, axes)
        if loss is None and isinstance(stored.loss, nn.Module):
            loss = stored.loss
        net = AnytimeModel(compiled(stored.captured, axes, stored.scheme, rewritten, stored.options), loss)
        _fill(net, stored.tensors, str(path))
        net.recount()
    if loss is None and isinstance(stored.loss, str):
        warnings.warn(
            f"{path} was saved with the loss {stored.loss}, which it does not hold: the model has the default loss of "
            "its scheme. Give yours to anytimeify.load(path, loss=...), or assign net.loss",
            AnytimeWarning,
            stacklevel=2,
        )
    return net.eval()


def _fill(net: AnytimeModel, tensors: Mapping[str, Tensor], path: str) -> None:
    live = net.tensors()
    wrong = [name for name, tensor in live.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        raise ArtifactError(
            f"{path} does not fit the model that its graph and scheme give: {wrong[0]} is missing or of another shape. "
            "It was written by another version, or changed"
        )
    with torch.no_grad():
        for name, tensor in live.items():
            if tensor is not tensors[name]:
                tensor.data = tensors[name].to(tensor.device)
            tensor.requires_grad_(tensors[name].requires_grad)
