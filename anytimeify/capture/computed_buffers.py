"""The values of buffers that no checkpoint holds, of a model that was built where tensors have none.

    self.register_buffer("inv_freq", 1.0 / base ** (torch.arange(0, dim, 2) / dim), persistent=False)

Rotary frequencies and tables of relative positions are computed when a model is built, and are no part of its state
dict. On the meta device they are shapes. Libraries that build their models there have a method for such modules that
computes their buffers again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.reinitialise import takes

__all__ = ["computed_buffers"]


def computed_buffers(model: nn.Module, names: Sequence[str]) -> Mapping[str, Tensor]:
    """The values, on the CPU, of those buffers among `names` that an initialiser computes anew: `reset_parameters()` or
    `init_non_persistent_buffers()` of the module that has them (torch, timm), or `_init_weights(module)` of the model
    (transformers).

    They are run on two copies in which the buffers hold different values: what then is the same was computed."""
    found: dict[str, Tensor] = {}
    for parameters in (_on_meta, _on_cpu):
        missing = [name for name in names if name not in found]
        if missing:
            one, other = (_initialised(model, missing, filled, parameters) for filled in (0, 1))
            found.update({name: value for name, value in one.items() if _same(value, other[name])})
    return found


def _on_meta(parameter: Tensor) -> Tensor:
    """What is written to it is lost."""
    return parameter.detach().to("meta")


def _on_cpu(parameter: Tensor) -> Tensor:
    """One number seen everywhere, for initialisers that compute where a parameter is; it cannot be written to."""
    return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)


def _initialised(
    model: nn.Module, names: Sequence[str], filled: int, parameters: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    memo: dict[int, Any] = {id(one): nn.Parameter(parameters(one), requires_grad=False) for one in model.parameters()}
    for name, buffer in model.named_buffers():
        wanted = name in names
        memo[id(buffer)] = buffer.new_full(buffer.shape, filled, device="cpu") if wanted else buffer.clone()
    drawn = copy.deepcopy(model, memo)
    with torch.no_grad():
        for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
            module = drawn.get_submodule(path)
            vars(module).pop("_is_hf_initialized", None)
            _run(getattr(module, "reset_parameters", None))
            _run(getattr(module, "init_non_persistent_buffers", None))
            _run(getattr(drawn, "_init_weights", None), module)
    return {name: drawn.get_buffer(name) for name in names}


def _same(one: Tensor, other: Tensor) -> bool:
    return not one.is_meta and not other.is_meta and torch.equal(one, other)


def _run(initialise: Any, *arguments: Any) -> None:
    """One that fails has computed nothing: it reads what has no values."""
    if takes(initialise, len(arguments)):
        try:
            initialise(*arguments)
        except Exception:
            return
