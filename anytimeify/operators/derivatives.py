"""Derivatives of the user's own: `torch.autograd.Function`s that a captured graph calls.

In canonical form such a call is written twice. What its forward pass computes stands there as ordinary operations, by
which axes are analysed, levels are cut, and inference graphs run; after them stands

    torch.ops.anytimeify.autograd_function(Tensor[] traced, Tensor[] inputs, str function) -> Tensor[]

whose results are those of `traced`, with the derivatives of `function` with respect to `inputs`. Lifted to a module of
a training graph it calls the function itself, and `traced` is not computed; in an inference graph only `traced` is.

A function is named by where it is defined and by the plain values that it was given beside its tensors, so that a saved
model can say which function it needs. Loading one imports nothing: the function has to be there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from anytimeify.errors import ArtifactError
from anytimeify.operators.modules import LIBRARY

__all__ = ["AUTOGRAD_FUNCTION", "AutogradFunction", "call_function", "name_of", "title_of"]

_TENSOR: Mapping[str, bool] = MappingProxyType({"tensor": True})  # stands for a tensor among the arguments of a name
_CAPTURED: dict[
    str, type[Function]
] = {}  # by place, those that this process has captured: some are local to a function


def name_of(function: type[Function], arguments: Sequence[Any], *, writes: bool = False) -> str:
    """The name of a call; `writes`: of a function that writes to its inputs, which is given copies of them.

    `TypeError` where an argument is neither a tensor nor a number, a string, None, or a list of these."""
    place = f"{function.__module__}:{function.__qualname__}"
    plain = [dict(_TENSOR) if isinstance(argument, Tensor) else _plain(argument) for argument in arguments]
    _CAPTURED[place] = function
    return json.dumps({"function": place, "arguments": plain, **({"writes": True} if writes else {})})


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    raise TypeError(f"a {type(value).__name__}")


def title_of(name: str) -> str:
    """The function that a name stands for, as a message shows it."""
    return str(json.loads(name)["function"])


def call_function(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The results of the function; `ArtifactError` where it is not defined in this process."""
    described = json.loads(name)
    return _call(_found(described["function"]), described["arguments"], inputs, writes=described.get("writes", False))


def _call(
    function: type[Function], arguments: Sequence[Any], inputs: Sequence[Tensor], *, writes: bool
) -> list[Tensor]:
    tensors = (one.clone() if writes else one for one in inputs)
    given = [next(tensors) if argument == _TENSOR else argument for argument in arguments]
    results: Any = function.apply(*given)
    return list(results) if isinstance(results, tuple) else [results]


def _found(place: str) -> type[Function]:
    if place in _CAPTURED:
        return _CAPTURED[place]
    module, _, path = place.partition(":")
    found: Any = sys.modules.get(module) if module.partition(".")[0] != "torch" else None
    for part in path.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Function)):
        raise ArtifactError(
            f"the model calls the autograd function {path} of the module {module}, which is not defined here. Reading "
            f"a file runs no code: import {module} first, then load the file again"
        )
    return found


class AutogradFunction(nn.Module):
    """Calls an autograd function on its tensors; gives a list of its results."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.name, described = function, json.loads(function)
        self.function, self.arguments = _found(described["function"]), described["arguments"]
        self.writes = described.get("writes", False)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return _call(self.function, self.arguments, inputs, writes=self.writes)

    def extra_repr(self) -> str:
        return self.function.__name__


def _autograd_function(traced: Sequence[Tensor], inputs: Sequence[Tensor], function: str) -> list[Tensor]:
    return call_function(function, inputs)


LIBRARY.define("autograd_function(Tensor[] traced, Tensor[] inputs, str function) -> Tensor[]")
# Made of differentiable calls, so autograd sees through it.
LIBRARY.impl("autograd_function", _autograd_function, "CompositeImplicitAutograd")

AUTOGRAD_FUNCTION = torch.ops.anytimeify.autograd_function.default
