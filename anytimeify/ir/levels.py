"""The levels of an anytime model, what they cost, and what the model returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from anytimeify.errors import ArgumentError, OutputsError

__all__ = ["AllOutputs", "Cost", "Level", "Outputs"]


class Cost(NamedTuple):
    """What one sample costs an extract. `macs`: multiply-accumulates of convolutions, linear layers and matrix
    products; `params`: elements of the parameters that it holds; `activation_bytes`: peak of live intermediate results.

    Of weights that are masked one by one (`NestedWeights`) both count what masks keep: what a compressed file stores
    and sparse kernels compute. An extract of those is dense, with zeros."""

    macs: int
    params: int
    activation_bytes: int


@dataclass(frozen=True)
class Level:
    """One of the networks inside an anytime model; 0 is the cheapest."""

    index: int
    name: str
    cost: Cost
    training_only: bool = False
    number: float | None = field(default=None, compare=False)  # what the scheme counts levels by: a width, say


_ONE_PER_LEVEL = "it holds one prediction per level, cheapest first; take one of out.levels, or net(x, level=k)"


def _refuse_attribute(name: str) -> NoReturn:
    """Says what to do where outputs are taken for a tensor; others ask for special names to see what this is."""
    if name.startswith("__"):
        raise AttributeError(name)
    raise OutputsError(f"Outputs has no attribute {name!r}: {_ONE_PER_LEVEL}, such as out.levels[-1].argmax(1)")


def _refuse_function(function: Any) -> NoReturn:
    """Asked by torch where a function, such as a criterion, is given outputs in place of a tensor: refuses."""
    name = getattr(function, "__name__", "a function of torch")
    raise ArgumentError(
        f"{name} was given Outputs for a tensor: {_ONE_PER_LEVEL}, such as criterion(out.levels[-1], target). All "
        "levels train with net.loss(out, target)"
    )


class Outputs(NamedTuple):
    """What an anytime model returns: one prediction per level, cheapest first, and what the losses need besides.

    With a taxonomy each of them is a tuple of predictions, finest labels first."""

    levels: tuple[Tensor, ...]
    members: tuple[Tensor, ...] = ()

    @property
    def results(self) -> tuple[Any, ...]:
        """None: see `AllOutputs`."""
        return ()

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_attribute(name)

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> NoReturn:
        _refuse_function(function)


class AllOutputs(NamedTuple):
    """What a model returns whose levels give all that the backbone returns (`output="all"`, and backbones that return
    other things in train mode): `results[k]` is that of level k, in the backbone's own structure."""

    levels: tuple[Tensor, ...]
    members: tuple[Tensor, ...]
    results: tuple[Any, ...]

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_attribute(name)

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> NoReturn:
        _refuse_function(function)
