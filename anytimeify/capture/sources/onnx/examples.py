"""Example inputs from what a file says of its inputs, and from sizes that the user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array, Graph, Input
from anytimeify.capture.sources.onnx.values import torch_dtype
from anytimeify.errors import ArgumentValueError, CaptureError

__all__ = ["constants", "examples", "missing_sizes", "sizes"]

Given = Mapping[str, int | float | Sequence[int]]
Shapes = dict[str, tuple[int, ...]]


def _input(graph: Graph, name: str) -> Input:
    found = next((one for one in graph.inputs if one.name == name), None)
    if found is None:
        raise ArgumentValueError(
            f"inputs: there is no input '{name}'; the file has {', '.join(one.name for one in graph.inputs)}"
        )
    return found


def constants(graph: Graph, given: Given) -> dict[str, Array]:
    """Inputs without axes for which a value is given: they are constants from now on."""
    found = {}
    for name, value in given.items():
        one = _input(graph, name)
        if isinstance(value, int | float) and one.sizes == ():
            found[name] = np.array(value, one.dtype)
    return found


def sizes(graph: Graph, given: Given) -> Shapes | None:
    """The shape of every input; None where the file leaves a size open and none is given. An open first size is the
    batch, 2 or what is given, and so are others of the same name.

    `ArgumentValueError` for sizes that are not those of the file."""
    own = {name: _shape(_input(graph, name), value) for name, value in given.items()}
    named: dict[str, int] = {}
    for one in graph.inputs:
        for declared, size in zip(one.sizes or (), own.get(one.name, ()), strict=False):
            if isinstance(declared, str):
                named[declared] = size
    batch = _batch(graph, own)
    found: Shapes = {}
    for one in graph.inputs:
        if one.name in own:
            found[one.name] = own[one.name]
            continue
        if one.sizes is None:
            return None
        shape = []
        for axis, size in enumerate(one.sizes):
            known = size if isinstance(size, int) else named.get(str(size))
            if known is None:
                first = graph.inputs[0].sizes or ()
                same = size is not None and bool(first) and size == first[0]
                known = batch if axis == 0 or same else None
            if known is None:
                return None
            shape.append(known)
        found[one.name] = tuple(shape)
    return found


def _batch(graph: Graph, own: Shapes) -> int:
    """What is given for the first axis of an input; else 2, or 3 where 2 is the first size of something else."""
    for one in graph.inputs:
        if own.get(one.name):
            return own[one.name][0]
    fixed = {one.sizes[0] for one in graph.inputs if one.sizes}
    return 3 if 2 in fixed and len(fixed) > 1 else 2


def _shape(one: Input, value: int | float | Sequence[int]) -> tuple[int, ...]:
    shape = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else None
    if shape is None or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ArgumentValueError(f"inputs: '{one.name}' is given {value!r}; expected sizes such as (2, 3, 224, 224)")
    declared = one.sizes
    fits = declared is None or (
        len(declared) == len(shape)
        and all(
            not isinstance(want, int) or want == size or axis == 0
            for axis, (want, size) in enumerate(zip(declared, shape, strict=True))
        )
    )
    if not fits:
        raise ArgumentValueError(f"inputs: '{one.name}' is given {list(shape)}, but the file says {_shown(one)}")
    return tuple(int(size) for size in shape)  # type: ignore[arg-type]  # compared above


def _shown(one: Input) -> str:
    if one.sizes is None:
        return "nothing of its sizes"
    return f"[{', '.join('?' if size is None else str(size) for size in one.sizes)}]"


def missing_sizes(inputs: Sequence[Input], path: str) -> CaptureError:
    """The error that asks for what a file leaves open."""
    open_ones = [one for one in inputs if one.sizes is None or any(not isinstance(s, int) for s in one.sizes[1:])]
    shown = ", ".join(f"{one.name} {_shown(one)}" for one in open_ones)
    asked = " ".join(
        f"--input {one.name}={'x'.join(str(s) if isinstance(s, int) else '2' if not axis else '?' for axis, s in enumerate(one.sizes or ('batch', None)))}"
        for one in open_ones
    )
    return CaptureError(
        f"'{path}' leaves sizes of its inputs open: {shown}. Give them: {asked}, with a number for each question mark "
        "(source(..., inputs={NAME: (2, ...)}), or example_inputs)."
    )


def examples(graph: Graph, shapes: Shapes) -> tuple[Tensor, ...]:
    """Random numbers, the same in every run; of integers those that a table which they index has, or ones."""
    generator = torch.Generator().manual_seed(0)
    return tuple(_example(graph, one, shapes[one.name], generator) for one in graph.inputs)


def _example(graph: Graph, one: Input, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = torch_dtype(one.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    most = _table(graph, one.name)
    if most is None:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(0, max(most, 1), shape, generator=generator).to(dtype)


def _table(graph: Graph, name: str) -> int | None:
    """How many rows the smallest table has that is read at the places that an input names."""
    found, same = list[int](), {name}
    for node in graph.nodes:
        if node.operator in ("Cast", "Reshape", "Unsqueeze", "Squeeze") and node.inputs[0] in same:
            same.update(node.outputs)
        table: Any = graph.tensors.get(node.inputs[0]) if node.operator == "Gather" else None
        if table is not None and node.inputs[1] in same and node.attributes.get("axis", 0) == 0:
            found.append(table.shape[0])
    return min(found, default=None)
