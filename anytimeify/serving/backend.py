"""What a runner runs: levels that know their inputs, whatever computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.serving.description import Description

__all__ = ["SAVED", "Backend", "Input", "check"]

SAVED = "net.safetensors"  # in a folder that the command line wrote


@dataclass(frozen=True)
class Input:
    """One of the inputs: its name, its type as numpy calls it, and its sizes; None for one that may be any."""

    name: str
    dtype: str
    sizes: tuple[int | None, ...]


class Backend(Protocol):
    """Levels that run. `run` and `stream` take arrays or tensors as `taken` gives them, one for each input."""

    @property
    def description(self) -> Description: ...
    @property
    def inputs(self) -> Sequence[Input]: ...
    @property
    def resumable(self) -> bool: ...  # whether each step of `stream` computes only what is new

    def taken(self, value: Any, input: Input) -> Any: ...
    def stacked(self, samples: Sequence[Any]) -> Any: ...
    def given(self, value: Any, asked: Sequence[Any]) -> Any: ...  # a result for whoever gave the inputs `asked`
    def run(self, level: int, inputs: Sequence[Any]) -> Any: ...
    def stream(self, inputs: Sequence[Any]) -> Iterator[Any]: ...
    def reopened(self) -> Self: ...  # for a process that was forked


def check(inputs: Sequence[Input], values: Sequence[Any], batch: tuple[int, int | None] | None) -> int:
    """The size of the batch. `ArgumentError` for another number of inputs, `ArgumentValueError` for other types, shapes
    and batches."""
    names = ", ".join(input.name for input in inputs)
    if len(values) != len(inputs):
        raise ArgumentError(f"{len(values)} inputs given: expected {len(inputs)} ({names})")
    for input, value in zip(inputs, values, strict=True):
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if dtype != input.dtype:
            raise ArgumentValueError(f"input '{input.name}' is of type {dtype}: expected {input.dtype}")
        fits = len(shape) == len(input.sizes) and all(
            size in (None, given) for size, given in zip(input.sizes, shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in input.sizes)
            raise ArgumentValueError(f"input '{input.name}' has the shape {list(shape)}: expected [{sizes}]")
    size = next((int(value.shape[0]) for input, value in zip(inputs, values, strict=True) if input.sizes), 1)
    if batch is not None and (size < batch[0] or (batch[1] is not None and size > batch[1])):
        most = "more" if batch[1] is None else str(batch[1])
        raise ArgumentValueError(f"a batch of {size} was given: expected {batch[0]} to {most}")
    return size
