"""Example inputs from what a file says of its inputs, and from sizes that the user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array, Graph, Input
from anytimeify.capture.sources.onnx.values import torch_dtype
from anytimeify.errors import ArgumentValueError, CaptureError

__all__ = ["LARGEST", "constants", "examples", "missing_sizes", "sizes"]

LARGEST = 1 << 26  # elements of a sample of which the file alone says the sizes

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
    """The shape of every input; None where the file leaves a size open, or has an input of more than `LARGEST`
    elements, and none is given. An open first size is the batch, 2 or what is given, and so are others of the same
    name.

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
        shape = own.get(one.name) or _filled(one, named, batch, graph.inputs[0])
        if shape is None or (one.name not in own and _is_large(one)):
            return None
        found[one.name] = shape
    return found


def _is_large(one: Input) -> bool:
    return math.prod(size for size in one.sizes or () if isinstance(size, int)) > LARGEST


def _filled(one: Input, named: Mapping[str, int], batch: int, first: Input) -> tuple[int, ...] | None:
    """The shape of an input with what is known of the names of its sizes."""
    if one.sizes is None:
        return None
    shape = []
    for axis, size in enumerate(one.sizes):
        is_batch = axis == 0 or (size is not None and bool(first.sizes) and size == (first.sizes or ())[0])
        known = size if isinstance(size, int) else named.get(str(size), batch if is_batch else None)
        if known is None:
            return None
        shape.append(known)
    return tuple(shape)


def _batch(graph: Graph, own: Shapes) -> int:
    """What is given for the first axis of an input; else 2, or 3 where 2 is the first size of something else."""
    for one in graph.inputs:
        if own.get(one.name):
            return own[one.name][0]
    fixed = {one.sizes[0] for one in graph.inputs if one.sizes}
    return 3 if 2 in fixed and len(fixed) > 1 else 2


def _shape(one: Input, value: int | float | Sequence[int]) -> tuple[int, ...]:
    listed: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,)
    shape = tuple(size for size in listed if isinstance(size, int) and size > 0)
    if len(shape) != len(listed):
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
    return shape


def _shown(one: Input) -> str:
    if one.sizes is None:
        return "nothing of its sizes"
    return f"[{', '.join('?' if size is None else str(size) for size in one.sizes)}]"


def missing_sizes(inputs: Sequence[Input], path: str) -> CaptureError:
    """The error that asks for what a file leaves open, or for what is so large that it may be a mistake."""
    open_ones = [one for one in inputs if one.sizes is None or any(not isinstance(s, int) for s in one.sizes[1:])]
    asked_for = open_ones or [one for one in inputs if _is_large(one)]
    shown = ", ".join(f"{one.name} {_shown(one)}" for one in asked_for)
    asked = " ".join(f"--input {one.name}={'x'.join(_asked(one))}" for one in asked_for)
    python = "(source(..., inputs={NAME: (2, ...)}), or example_inputs)"
    if open_ones:
        return CaptureError(
            f"'{path}' leaves sizes of its inputs open: {shown}. Give them: {asked}, with a number for each question "
            f"mark {python}."
        )
    return CaptureError(
        f"'{path}' says that inputs have more than {LARGEST:,} elements: {shown}. Where that is meant, give them: "
        f"{asked} {python}."
    )


def _asked(one: Input) -> list[str]:
    sizes = one.sizes if one.sizes is not None else (None, None)
    return [str(size) if isinstance(size, int) else "?" if axis else "2" for axis, size in enumerate(sizes)]


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
