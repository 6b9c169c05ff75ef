"""A backbone's tensors as its own initialisers draw them, for copies that shall not start where the backbone is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.initial_values import initial, is_matrix, looks_drawn, shows_training
from anytimeify.errors import SchemeError
from anytimeify.operators.copies import copied

__all__ = ["redrawn", "takes"]


def redrawn(model: nn.Module, wanted: Container[str] | None = None) -> Mapping[str, Tensor]:
    """Parameters and buffers of a copy of `model`, by name, after every initialiser that its modules have has run. If
    it is said which are `wanted`, there are no others of several dimensions.

    1. `reset_parameters()` of each module, as torch's own layers have it, inner modules first, as a constructor does;
    2. `_init_weights(module)` of the model for each module, or else `init_weights()`, as transformers and timm have it;
    3. where a parameter still looks as its constructor left it, and that is not what these draw, it is drawn as it is
       there (`initial`).

    An initialiser that asks for other arguments is left out. Raises `SchemeError` where one of them fails.
    """
    if wanted is not None:
        try:
            found = _redrawn(model, _left_out(model, wanted))
        except SchemeError:  # an initialiser that reads values, where there are none
            found = _redrawn(model, {})
        return {name: tensor for name, tensor in found.items() if not tensor.is_meta}
    return _redrawn(model, {})


def _redrawn(model: nn.Module, left_out: dict[int, Any]) -> Mapping[str, Tensor]:
    drawn = copied(model, left_out)
    before = dict(model.named_parameters())
    with torch.no_grad():
        for path, module in reversed(list(drawn.named_modules())):
            for name in _RESETS:
                _run(getattr(module, name, None), (), path, module)
            if hasattr(module, "_is_hf_initialized"):
                del module._is_hf_initialized
        _by_the_model(drawn)
        trained = any(
            shows_training(before[name], parameter)
            for name, parameter in drawn.named_parameters()
            if not parameter.is_meta
        )
        for path, module in drawn.named_modules():
            _as_constructed(before, path, module, trained=trained)
    return {**dict(drawn.named_parameters(remove_duplicate=False)), **dict(drawn.named_buffers(remove_duplicate=False))}


def _left_out(model: nn.Module, wanted: Container[str]) -> dict[int, Any]:
    """What a copy has in the place of the matrices that are not wanted under any name: nothing is drawn there."""
    named = [*model.named_parameters(remove_duplicate=False)]
    kept = {id(parameter) for name, parameter in named if name in wanted}
    return {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for _, parameter in named
        if id(parameter) not in kept and is_matrix(parameter)
    }


def _as_constructed(before: Mapping[str, Tensor], path: str, module: nn.Module, *, trained: bool) -> None:
    """Gives the parameters of one module, drawn again, the initial values that those `before` tell of. In a network
    that is `trained` only weights of many elements tell."""
    own = {name: parameter for name, parameter in module.named_parameters(path, recurse=False) if name in before}
    looks = {name: looks_drawn(before[name], certain=trained) for name in own if is_matrix(own[name])}
    layer = bool(looks) and all(looks.values())
    for name, parameter in own.items():
        if parameter.is_meta and not before[name].is_meta:
            continue
        parameter.copy_(initial(before[name], parameter, untrained=looks.get(name, layer)))


_RESETS = ("reset_parameters", "_reset_parameters")  # the second one is what torch's attention and transformers have


def _by_the_model(model: nn.Module) -> None:
    of_module = getattr(model, "_init_weights", None)
    ran = [_run(of_module, (module,), path, module) for path, module in model.named_modules()]
    if not any(ran):
        _run(getattr(model, "init_weights", None), (), "", model)


def _run(initialise: Any, arguments: tuple[Any, ...], path: str, module: nn.Module) -> bool:
    """Whether there is such an initialiser; one of a base class may leave it to others."""
    if not takes(initialise, len(arguments)):
        return False
    try:
        initialise(*arguments)
    except NotImplementedError:
        return False
    except Exception as error:
        where = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
        raise SchemeError(
            f"init='fresh': the initialiser {getattr(initialise, '__name__', '')} of {where} fails with "
            f"{type(error).__name__}: {error}. Use init='copy'"
        ) from error
    return True


def takes(function: Callable[..., Any] | None, count: int) -> bool:
    """Whether it can be called with so many arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True
