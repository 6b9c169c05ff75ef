"""Values that a model made of a backbone on the meta device still waits for.

    net = transform(backbone_on_meta, scheme, verify=False)
    net.to_empty(device="cpu")
    net.load_state_dict(shard, strict=False)        # the backbone's, shard after shard

A checkpoint of the backbone has no tensors of a level's own: its norms, its head, the copies of a branch. They are made
of the backbone's when the last of these has come, as `transform` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anytimeify.codegen.to_modules import backbone_name
from anytimeify.errors import ArtifactError
from anytimeify.runtime.definition import Definition

__all__ = ["Awaited", "refuse_without_values"]


class Awaited:
    """The tensors without values, by name: those of the backbone, and those that are made of them.

    A tensor that holds those of several members is both: the backbone's is the first member's."""

    def __init__(self, definition: Definition, tensors: Mapping[str, Tensor]) -> None:
        shapes = {name: tensor.shape for name, tensor in definition.captured.program.tensors.items()}
        missing = [name for name, tensor in tensors.items() if tensor.is_meta]
        self.backbones = {name for name in missing if name in shapes}
        self.made = {name for name in missing if tensors[name].shape != shapes.get(name)}
        self._given: dict[str, torch.Size] = {}

    def loading(self, state: Mapping[str, Any], prefix: str, renamed: Mapping[str, str]) -> None:
        """Notes what a state dict holds, before it is loaded."""
        given = {name: one for name, one in state.items() if name.startswith(prefix) and isinstance(one, Tensor)}
        names = {backbone_name(name.removeprefix(prefix), renamed): one.shape for name, one in given.items()}
        self._given = names

    def loaded(self, definition: Definition, tensors: Mapping[str, Tensor]) -> set[str]:
        """Fills in what is made of the backbone's tensors, once all of these are there; the names of it."""
        given, self._given = self._given, {}
        places = {id(tensors[name]) for name in given if name in tensors}
        self.backbones = {name for name in self.backbones if id(tensors[name]) not in places}
        self.made = {name for name in self.made if given.get(name) != tensors[name].shape}
        if self.backbones or any(tensors[name].is_meta for name in self.made):
            return set()
        made, self.made = self.made, set()
        if made:
            captured, axes = definition.recast_with(definition.captured_with(tensors))
            values = definition.options.apply(definition.scheme, captured, axes).program.tensors
            with torch.no_grad():
                for name in made:
                    tensors[name].copy_(values[name])
        return made


def refuse_without_values(tensors: Mapping[str, Tensor], what: str) -> None:
    """`ArtifactError` where tensors are on the meta device, and values of them are wanted."""
    missing = [name for name, tensor in tensors.items() if tensor.is_meta]
    if missing:
        raise ArtifactError(
            f"the model cannot be {what}: {len(missing)} of its {len(tensors)} tensors, such as '{missing[0]}', are on "
            "the meta device and have no values. Give it some first: net.to_empty(device='cpu'), then "
            "net.load_state_dict(..., strict=False) with the backbone's checkpoint"
        )
