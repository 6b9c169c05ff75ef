"""Copies of modules, of those too that `copy.deepcopy` does not take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["copied", "without_tensors"]


def copied(module: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A copy of a module and of what is in it; by identity, some tensors may be others there.

    Where a part cannot be copied, that part alone is shared (a lock, a handle of a library), and a tensor that was
    computed is copied without its derivative."""
    try:
        return copy.deepcopy(module, dict(tensors or {}))
    except Exception:  # whatever the parts raise
        pass
    parts = list(module.modules())
    known: dict[int, Any] = {id(part): type(part).__new__(type(part)) for part in parts}
    for part in parts:
        known.update({id(tensor): copy.deepcopy(tensor) for tensor in _tensors(part)})
    known.update(tensors or {})
    for part in parts:
        known[id(part)].__dict__.update({name: _copied(value, known) for name, value in vars(part).items()})
    found: nn.Module = known[id(module)]
    return found


def _copied(value: Any, known: Mapping[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, dict(known))
    except Exception:  # whatever it raises
        return value.detach().clone() if isinstance(value, Tensor) else value


def without_tensors(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no values."""
    return copied(module, {id(one): _without_values(one) for part in module.modules() for one in _tensors(part)})


def _tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(recurse=False), *part.buffers(recurse=False)]


def _without_values(tensor: Tensor) -> Tensor:
    shell = tensor.detach().to("meta")
    return nn.Parameter(shell, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shell
