"""Levels that torch runs: of an anytime model, and of a PT2 archive that `net.export` wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from anytimeify._torch import unflatten
from anytimeify.capture.sources.pt2 import load_exported
from anytimeify.early_exit.document import MANIFEST
from anytimeify.errors import ArgumentError, ArtifactError, first_line
from anytimeify.io.files import reading, regular_file
from anytimeify.ir import Signature
from anytimeify.ir.node_meta import tensor_type, value_of
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.serving.backend import SAVED, Input
from anytimeify.serving.description import KEY, Description, ServedLevel, read_description

__all__ = ["ArchiveLevels", "NetLevels", "torch_levels"]


def torch_levels(source: object, device: str, trust_pickle: bool) -> NetLevels | ArchiveLevels:
    """The levels of a model, of a file or folder with a saved one, or of a PT2 archive."""
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device={device!r}: {first_line(error)}") from error
    if isinstance(source, AnytimeModel):
        return NetLevels.of(source, where)
    path = Path(str(source))
    if path.suffix == ".onnx" or (path / MANIFEST).is_file():
        raise ArgumentError(f"{path} is run by backend='onnxruntime', not by torch")
    if path.suffix == ".pt2":
        return ArchiveLevels.of(regular_file(path), where, trust_pickle)
    return NetLevels.of(load(path / SAVED if path.is_dir() else path).to(where), where)


class TorchLevels:
    """What the two have in common: tensors."""

    device: torch.device

    def reopened(self) -> Self:
        return self

    def taken(self, value: Any, input: Input) -> Tensor:
        """A tensor of what is one, or an array; numbers and lists take the type of the input."""
        if not isinstance(value, Tensor) and not hasattr(value, "dtype"):
            return torch.tensor(value, dtype=getattr(torch, input.dtype), device=self.device)
        return torch.as_tensor(value, device=self.device)

    def stacked(self, samples: Sequence[Any]) -> Tensor:
        return torch.stack(list(samples))

    def given(self, value: Any, asked: Sequence[Any]) -> Any:
        return value

    def _computed(self, call: Callable[[], Any]) -> Any:
        """The result of a call when it is there, without derivatives."""
        with torch.inference_mode():
            result = call()
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        return result


@dataclass(frozen=True)
class NetLevels(TorchLevels):
    """Those of a model, in eval mode: its levels but for those for training only, as they are now."""

    net: AnytimeModel
    device: torch.device
    description: Description
    inputs: tuple[Input, ...]
    indices: tuple[int, ...]
    signature: Signature  # kept, for the model describes its backbone anew whenever it is asked

    @classmethod
    def of(cls, net: AnytimeModel, device: torch.device) -> NetLevels:
        """`ArgumentError` where the model is on another device."""
        where = next((tensor.device for tensor in net.tensors().values()), device)
        if where.type != device.type or device.index not in (None, where.index):
            raise ArgumentError(f"device={str(device)!r}: the model is on {where}; move it, or give device='{where}'")
        kept = [level for level in net.levels if not level.training_only]
        levels = tuple(
            ServedLevel(place, level.name, level.number, level.cost.macs) for place, level in enumerate(kept)
        )
        batch = net.captured.batch_range if net.captured.batch is not None else None
        inputs = []
        for node in net.captured.program.placeholders:
            kind = tensor_type(node)
            sizes = tuple(size.coefficient if size.static else None for size in kind.shape)
            inputs.append(Input(node.name, str(kind.dtype).removeprefix("torch."), sizes))
        described = Description(str(net.scheme), levels, batch)
        indices = tuple(level.index for level in kept)
        return cls(net, where, described, tuple(inputs), indices, net.captured.signature)

    @property
    def resumable(self) -> bool:
        return self.net.resumable

    def run(self, level: int, inputs: Sequence[Tensor]) -> Any:
        args, kwargs = self._arguments(inputs)
        return self._computed(lambda: self.net(*args, level=self.indices[level], **kwargs))

    def stream(self, inputs: Sequence[Tensor]) -> Iterator[Any]:
        args, kwargs = self._arguments(inputs)
        steps = self.net.stream(*args, **kwargs)
        while (step := self._computed(lambda: next(steps, None))) is not None:
            yield step[1]

    def _arguments(self, inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.net.training:
            raise ArgumentError("the model is in train mode: call net.eval() before it serves")
        return self.net.call_signature.arguments(tuple(inputs), self.signature)


@dataclass(frozen=True)
class ArchiveLevels(TorchLevels):
    """Those of an archive: a program each."""

    device: torch.device
    description: Description
    inputs: tuple[Input, ...]
    calls: tuple[Callable[[Sequence[Tensor]], Any], ...]
    resumable = False

    @classmethod
    def of(cls, file: Path, device: torch.device, trust_pickle: bool) -> ArchiveLevels:
        """Raises `ArtifactError` for another file, and for one that could run code unless `trust_pickle`."""
        description = _described(file)
        programs = [
            load_exported(file, trust_pickle=trust_pickle, model=f"level_{level.index}") for level in description.levels
        ]
        calls = tuple(_call(program, device) for program in programs)
        return cls(device, description, _inputs(programs[0]), calls)

    def run(self, level: int, inputs: Sequence[Tensor]) -> Any:
        return self._computed(lambda: self.calls[level](inputs))

    def stream(self, inputs: Sequence[Tensor]) -> Iterator[Any]:
        for level in range(len(self.calls)):
            yield self.run(level, inputs)


def _described(file: Path) -> Description:
    with reading(file), zipfile.ZipFile(file) as archive:
        text = next(
            (archive.read(name).decode() for name in archive.namelist() if name.partition("/")[2] == f"extra/{KEY}"),
            None,
        )
    if text is None:
        raise ArtifactError(f"{file} says nothing of levels: expected an archive that net.export has written")
    return read_description(text, file)


def _inputs(program: ExportedProgram) -> tuple[Input, ...]:
    wanted = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    found = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = value_of(node)
        if node.name in wanted and isinstance(value, Tensor):
            shape: Sequence[Any] = value.shape  # numbers, and symbols for the batch
            sizes = tuple(size if isinstance(size, int) else None for size in shape)
            found.append(Input(node.name, str(value.dtype).removeprefix("torch."), sizes))
    return tuple(found)


def _call(program: ExportedProgram, device: torch.device) -> Callable[[Sequence[Tensor]], Any]:
    """A program that takes its tensors one after the other, with the constants that it was exported with between."""
    module = program.module().to(device)
    leaves = [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    structure = program.call_spec.in_spec

    def call(inputs: Sequence[Tensor]) -> Any:
        rest = iter(inputs)
        given = [leaf.value if isinstance(leaf, ConstantArgument) else next(rest) for leaf in leaves]
        args, kwargs = unflatten(given, structure)
        return module(*args, **kwargs)

    return call
