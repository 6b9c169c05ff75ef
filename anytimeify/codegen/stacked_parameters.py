"""Tensors that hold those of several members one after the other, along their first dimension: the backbone's first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["accept_backbones", "first_member"]


def first_member(stack: Tensor, shape: Sequence[int]) -> Tensor:
    """The backbone's own part of a stack; a parameter of a parameter, sharing its storage."""
    if stack.shape == torch.Size(shape):
        return stack
    part = stack.detach()[: shape[0] if shape else 1].reshape(torch.Size(shape))
    return nn.Parameter(part, stack.requires_grad) if isinstance(stack, nn.Parameter) else part


def accept_backbones(module: nn.Module, shapes_of: Callable[[Any], Mapping[str, Sequence[int]]]) -> None:
    """Lets a state dict of the backbone load: a tensor of the backbone's shape becomes the first member's, the other
    members keep what they have. `shapes_of(module)` are the backbone's, of the stacks."""

    def loading(owner: nn.Module, state: dict[str, Any], prefix: str, *unused: object) -> None:
        own = {**dict(owner.named_parameters(remove_duplicate=False)), **dict(owner.named_buffers())}
        for name, shape in shapes_of(owner).items():
            given, stack = state.get(prefix + name), own.get(name)
            if isinstance(given, Tensor) and stack is not None and given.shape == torch.Size(shape) != stack.shape:
                whole = stack.detach().clone()
                whole[: shape[0] if shape else 1] = given.detach().to(whole).reshape(-1, *whole.shape[1:])
                state[prefix + name] = whole

    module.register_load_state_dict_pre_hook(loading)
