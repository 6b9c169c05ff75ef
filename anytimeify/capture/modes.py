"""Which parts of a model train, and with what derivatives: read off before it is captured.

A model that is in train mode says so itself: its modules that are in eval mode (frozen norms, a dropout that was
switched off) stay there. So do those that a `train()` of its own keeps there, which is tried on a copy without data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from anytimeify._torch import backward_hooks, gradient_hooks
from anytimeify.errors import CaptureError

__all__ = ["Modes", "attributes_kept", "in_mode", "refuse_hooks"]


# Layers of torch that compute something else in training.
_WITH_MODES = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RNNBase, nn.RReLU),
)


@contextmanager
def in_mode(model: nn.Module, *, training: bool, held: frozenset[str] = frozenset()) -> Iterator[None]:
    """The model with all training flags set one way, except for modules `held` in eval mode; no `train()` of the
    user's is called. Every flag is restored exactly."""
    flags = [(path, module, module.training) for path, module in model.named_modules()]
    try:
        for path, module, _ in flags:
            module.training = training and path not in held
        yield
    finally:
        for _, module, flag in flags:
            module.training = flag


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """What a forward pass keeps in attributes, such as a counter or a table for the last size, is as before; and so are
    hooks, which a forward pass may install, and note in an attribute that it did."""
    kept = [own for module in model.modules() for own in (vars(module), *_hooks(module))]
    before = [dict(own) for own in kept]
    try:
        yield
    finally:
        for own, values in zip(kept, before, strict=True):
            for name in own.keys() - values.keys():
                del own[name]
            own.update(values)


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [own for name, own in vars(module).items() if name.startswith("_forward_") and isinstance(own, dict)]


@dataclass(frozen=True)
class Modes:
    """The modules, by path, that are in eval mode when the model trains; and what of its modes cannot be kept."""

    held: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()

    @staticmethod
    def of(model: nn.Module) -> Modes:
        own = _after_train(model) if any(map(_has_own_train, model.modules())) else Modes()
        if model.training:
            return replace(own, held=own.held | _paths(model, training=False))
        awake = [path for path, one in model.named_modules() if one.training and isinstance(one, _WITH_MODES)]
        if awake:
            one = f"'{awake[0]}'" + (f" and {len(awake) - 1} more" if len(awake) > 1 else "")
            lost = f"modules in train mode inside a model in eval mode follow the mode of the result: {one}"
            return replace(own, lost=(*own.lost, lost))
        return own


def _paths(model: nn.Module, *, training: bool) -> frozenset[str]:
    return frozenset(path for path, module in model.named_modules() if module.training is training)


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in module.__dict__


def _after_train(model: nn.Module) -> Modes:
    """What `train()` of the model's own holds in eval mode."""
    memo: dict[int, Any] = {id(one): _without_data(one) for one in (*model.parameters(), *model.buffers())}
    try:
        return Modes(_paths(copy.deepcopy(model, memo).train(), training=False))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        lost = f"train() of the model's own could not be tried on a copy ({reason}), so all its modules train"
        return Modes(lost=(f"{lost}; call model.train() before the transform to keep what it does",))


def _without_data(tensor: Tensor) -> Tensor:
    shell = tensor.detach().to("meta")
    return nn.Parameter(shell, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shell


def refuse_hooks(model: nn.Module) -> None:
    """`CaptureError` where a hook sees or changes gradients, which no graph of the forward pass shows."""
    for path, module in model.named_modules():
        for hook in backward_hooks(module):
            where = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
            raise CaptureError(
                f"A backward hook is registered on {where}: {_name(hook)}. A graph does not hold the backward pass, so "
                "it would be lost. Remove it before the transform (handle.remove()), and register it on a module or a "
                "parameter of the result."
            )
    for name, parameter in model.named_parameters():
        for hook in gradient_hooks(parameter):
            raise CaptureError(
                f"A gradient hook is registered on the parameter '{name}': {_name(hook)}. It belongs to that tensor, "
                "so it would be lost. Remove it before the transform (handle.remove()), and register it on "
                f"net.get_parameter('{name}')."
            )


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))
