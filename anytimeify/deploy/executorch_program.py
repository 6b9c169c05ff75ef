"""Levels in one ExecuTorch program, a method each: `level_0`, `level_1`, ..., for a batch of one sample.

    from executorch.runtime import Runtime
    method = Runtime.get().load_program("net.pte").load_method("level_0")

ExecuTorch stores a tensor once that several methods read. So every method reads whole weights and takes its part of
them when it runs, which costs one copy of the part. Operators are the portable ones: delegates, such as XNNPACK, pack
weights of their own into every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anytimeify.capture.inputs import CallInputs, of_batch
from anytimeify.deploy.levels import Levels
from anytimeify.deploy.shared_tensors import Part, Pool, as_array
from anytimeify.errors import ArtifactError, first_line
from anytimeify.storage.export import exported

__all__ = ["write_executorch"]


def write_executorch(levels: Levels, file: Path, name: str) -> None:
    """Writes the program and compares every method of it, as ExecuTorch runs it, with its extract."""
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    inputs = of_batch(levels.inputs, 1)
    modules = _sharing(levels.extracts)
    programs = {f"level_{place}": exported(module, inputs, None) for place, module in enumerate(modules)}
    try:
        lowered = to_edge_transform_and_lower(programs).to_executorch()
        file.write_bytes(lowered.buffer)
        methods = Runtime.get().load_program(file)
    except Exception as error:
        raise ArtifactError(
            f"'{name}' was not written: ExecuTorch refuses this network ({first_line(error)})"
        ) from error

    def run(place: int, case: CallInputs) -> Any:
        return tuple(methods.load_method(f"level_{place}").execute(case.tensors))

    levels.fixed().verify(name, run, inputs)


def _sharing(extracts: list[nn.Module] | Any) -> list[nn.Module]:
    """The extracts as modules that take their weights out of those of all."""
    pool = Pool()
    weights: dict[str, Tensor] = {}
    result: list[nn.Module] = []
    for place, extract in reversed(list(enumerate(extracts))):
        parts: dict[str, Part] = {}
        for name, tensor in extract.state_dict().items():
            found = pool.find(name, as_array(tensor))
            if not isinstance(found, Part):
                called = name if name not in weights else f"level_{place}.{name}"
                pool.add(called, as_array(tensor))
                weights[called] = tensor.detach()
                found = Part(called, tuple(slice(0, size) for size in tensor.shape))
            parts[name] = found
        result.append(_Taking(extract, parts, weights))
    return result[::-1]


class _Taking(nn.Module):
    """A level whose tensors are parts of others."""

    def __init__(self, level: nn.Module, parts: Mapping[str, Part], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.level = [level]  # no child: its tensors are not read
        self.parts = parts
        self.held = {part.source: f"held_{number}" for number, part in enumerate(parts.values())}
        for source, attribute in self.held.items():
            self.register_buffer(attribute, weights[source])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = {name: _taken(getattr(self, self.held[part.source]), part) for name, part in self.parts.items()}
        return functional_call(self.level[0], tensors, args, kwargs)


def _taken(whole: Tensor, part: Part) -> Tensor:
    for dim, places in enumerate(part.places):
        if not isinstance(places, slice):
            whole = whole.index_select(dim, torch.from_numpy(places))
        elif (places.start, places.stop) != (0, whole.shape[dim]):
            whole = whole.narrow(dim, places.start, places.stop - places.start)
    return whole
