"""A backbone's tensors as its own initialisers draw them, for copies that shall not start where the backbone is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

__all__ = ["redrawn"]


def redrawn(model: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and buffers of a copy of `model`, by name, after every initialiser that its modules have has run.

    1. `reset_parameters()` of each module, as torch's own layers have it, outermost first;
    2. `_init_weights(module)` of the model for each module, or else `init_weights()`, as transformers and timm have it;
    3. a random parameter that none of them has touched is drawn from a normal distribution with its mean and standard
       deviation.
    """
    drawn = copy.deepcopy(model)
    before = {name: parameter.detach().clone() for name, parameter in drawn.named_parameters()}
    with torch.no_grad():
        for module in drawn.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            if hasattr(module, "_is_hf_initialized"):
                del module._is_hf_initialized
        _by_the_model(drawn)
        for name, parameter in drawn.named_parameters():
            same = parameter.is_floating_point() and torch.equal(parameter, before[name])
            if same and parameter.numel() > 1 and bool((parameter != parameter.flatten()[0]).any()):
                parameter.normal_(float(parameter.mean()), float(parameter.std()))
    return {**dict(drawn.named_parameters(remove_duplicate=False)), **dict(drawn.named_buffers(remove_duplicate=False))}


def _by_the_model(model: nn.Module) -> None:
    for name, arguments in (("_init_weights", None), ("init_weights", ())):
        initialise = getattr(model, name, None)
        if not callable(initialise):
            continue
        with suppress(TypeError, NotImplementedError):  # those of other libraries that take other arguments
            if arguments is None:
                for module in model.modules():
                    initialise(module)
            else:
                initialise()
            return
