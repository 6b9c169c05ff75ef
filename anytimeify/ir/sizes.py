"""How large a program is, and a program without data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from anytimeify.ir.program import Program

__all__ = ["ProgramSize", "bytes_of", "without_data"]


class ProgramSize(NamedTuple):
    """The nodes of a graph, and the bytes of the tensors that it reads."""

    nodes: float
    memory_bytes: float

    @staticmethod
    def of(program: Program) -> ProgramSize:
        """Tied tensors count once."""
        return ProgramSize(len(program.graph.nodes), bytes_of(program.tensors.values()))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of several tensors, each once."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def without_data(program: Program) -> Program:
    """The same graph over tensors on the meta device; tied ones stay tied."""
    shapes: dict[int, Tensor] = {}
    for tensor in program.tensors.values():
        shape = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        shapes[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if parameter else shape
    return replace(program, tensors={name: shapes[id(tensor)] for name, tensor in program.tensors.items()})
