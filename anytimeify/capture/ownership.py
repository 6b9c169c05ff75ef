"""Whose tensors a program holds: until the very end those of the backbone, which nothing writes to.

So what a scheme makes of a tensor (a stack of members, a part) is made of the backbone's own, and a tensor is copied
once, if it is part of the result as it is. A result that may consume its backbone takes the memory over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from anytimeify.ir import Program

__all__ = ["Owner", "borrowed", "own_copy"]


def borrowed(tensor: Tensor) -> Tensor:
    """A tensor over the same memory, whose flags are its own; a copy where elements lie on top of each other."""
    if tensor.layout is not torch.strided or not _covers_memory(tensor):
        return own_copy(tensor)
    return _like(tensor, tensor.detach())


def own_copy(tensor: Tensor) -> Tensor:
    """A copy; a parameter of a parameter."""
    return _like(tensor, tensor.detach().clone())


class Owner:
    """Copies what is in the memory of some models, each tensor once; or takes it over with `consume`, where a tensor is
    the only one in its memory. Everything else stays what it is."""

    def __init__(self, models: Sequence[nn.Module | ExportedProgram], *, consume: bool = False) -> None:
        memory = Counter(_memory(tensor) for tensor in _distinct(models))
        self._theirs, self._consume = memory, consume
        self._mine: dict[int, tuple[Tensor, Tensor]] = {}  # both, so that no other tensor gets the number

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by name; tied ones stay tied, over all calls."""
        for tensor in tensors.values():
            if id(tensor) not in self._mine:
                self._mine[id(tensor)] = tensor, self._owned(tensor)
        return {name: self._mine[id(tensor)][1] for name, tensor in tensors.items()}

    def owned(self, program: Program) -> Program:
        """The program with tensors of its own."""
        return replace(program, tensors=self.own(program.tensors))

    def _owned(self, tensor: Tensor) -> Tensor:
        theirs = self._theirs.get(_memory(tensor), 0)
        if not theirs or (self._consume and theirs == 1 and _fills_memory(tensor)):
            return tensor
        return own_copy(tensor)


def _distinct(models: Sequence[nn.Module | ExportedProgram]) -> Iterator[Tensor]:
    seen: set[tuple[Any, ...]] = set()
    for model in models:
        for tensor in _tensors(model):
            key = (_memory(tensor), tensor.storage_offset(), tensor.shape) if _has_memory(tensor) else (id(tensor),)
            if key not in seen:
                seen.add(key)
                yield tensor


def _tensors(model: nn.Module | ExportedProgram) -> Iterable[Tensor]:
    if isinstance(model, nn.Module):
        return [*model.parameters(), *model.buffers()]
    return [value for value in (*model.state_dict.values(), *model.constants.values()) if isinstance(value, Tensor)]


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _memory(tensor: Tensor) -> int | None:
    return tensor.untyped_storage().data_ptr() or None if _has_memory(tensor) else None


def _covers_memory(tensor: Tensor) -> bool:
    """Whether every element has a place of its own."""
    sizes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    expected = 1
    for stride, size in sizes:
        if stride != expected:
            return False
        expected *= size
    return True


def _fills_memory(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
