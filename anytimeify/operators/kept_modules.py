"""Modules of the user's own that a graph calls as they are, for no exporter can look into them.

    torch.ops.anytimeify.kept_module(Tensor[] inputs, Tensor[] state, str module, bool training) -> Tensor[]

`state` are the module's parameters and buffers, which belong to the program: they are trained, copied for members and
named as those of every other module. What else the module holds stays in a shell of it, a copy without tensors, which
this process knows by `module`. No file can hold one.

The types of the results follow from what was seen at two sizes of a batch (`Sample`): a size is a number, or a multiple
of a size of an input. In a graph of modules that trains a `KeptModule` stands for the call, in an inference graph the
user's own module does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anytimeify._torch import TreeSpec, flatten, has_values, unflatten
from anytimeify.errors import ArtifactError
from anytimeify.operators.copies import without_tensors
from anytimeify.operators.modules import LIBRARY

__all__ = [
    *("KEPT_MODULE", "Extent", "KeptModule", "Multiple", "Sample", "Shell"),
    *("call_of", "items", "remember", "shell_of"),
]


@dataclass(frozen=True)
class Multiple:
    """A size that is `factor` times dimension `dim` of input number `place`."""

    factor: int
    place: int
    dim: int


Extent: TypeAlias = int | Multiple


@dataclass(frozen=True)
class Sample:
    """What one call of a module was given and gave."""

    inputs: Sequence[tuple[Extent | None, ...]]  # sizes of the tensors; None: what the batch decides
    results: Sequence[tuple[tuple[Extent, ...], torch.dtype]]
    arguments: TreeSpec  # of `(args, kwargs)`
    constants: tuple[Any, ...]  # leaves of the arguments; the class `Tensor` stands for a tensor
    returned: TreeSpec
    macs: Extent = 0  # multiply-accumulates

    def refusal(self, given: Sequence[Tensor]) -> str | None:
        """Why a call with these tensors is another one than what was seen."""
        for place, (tensor, sizes) in enumerate(zip(given, self.inputs, strict=True)):
            known = [size is None or size == found for size, found in zip(sizes, tensor.shape, strict=False)]
            if tensor.dim() != len(sizes) or not all(known):
                return f"was seen with an input {place} of {sizes}, and is given one of {tuple(tensor.shape)}"
        return None


@dataclass(frozen=True)
class Shell:
    """A module without its tensors, and what is known of one call of it."""

    module: nn.Module
    state: tuple[str, ...]  # the names of its parameters and buffers, in the order of the operator's operands
    sample: Sample
    path: str  # in the backbone
    held: frozenset[str] = frozenset()  # paths inside that stay in eval mode in training

    @property
    def title(self) -> str:
        return f"'{self.path}' ({type(self.module).__name__})"

    def filled(self, tensors: Sequence[Tensor]) -> nn.Module:
        """A module of the user's class, in eval mode, with these tensors."""
        module = without_tensors(self.module)
        for name, tensor in zip(self.state, tensors, strict=True):
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            if isinstance(tensor, nn.Parameter):
                owner._parameters[last] = tensor
            else:  # such as a part of a parameter
                owner._parameters.pop(last, None)
                owner._buffers[last] = tensor
        set_mode(module, training=False)
        return module


_SHELLS: dict[str, Shell] = {}  # of this process


def remember(shell: Shell) -> str:
    """The name of a shell in graphs."""
    name = f"{type(shell.module).__module__}:{type(shell.module).__qualname__}:{shell.path}:{len(_SHELLS)}"
    _SHELLS[name] = shell
    return name


def shell_of(name: str) -> Shell:
    """`ArtifactError` where no module of that name was captured in this process."""
    if name not in _SHELLS:
        raise ArtifactError(f"the model calls the module {name} of the process that made it, which files cannot hold")
    return _SHELLS[name]


def set_mode(module: nn.Module, *, training: bool, held: frozenset[str] = frozenset()) -> None:
    """Sets every flag; no `train()` of the user's is called."""
    for path, part in module.named_modules():
        part.training = training and path not in held


def call_of(sample: Sample, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with `inputs` in the place of its tensors."""
    given = iter(inputs)
    leaves = [next(given) if leaf is Tensor else leaf for leaf in sample.constants]
    args, kwargs = unflatten(leaves, sample.arguments)
    return args, kwargs


def run(shell: Shell, module: nn.Module, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that the module returns. `RuntimeError` where they are not as many as were seen."""
    args, kwargs = call_of(shell.sample, inputs)
    result = functional_call(module, dict(zip(shell.state, state, strict=True)), args, kwargs)
    leaves, spec = flatten(result)
    if spec != shell.sample.returned:
        raise RuntimeError(
            f"{shell.title}, which is kept whole, returned {spec}; when it was captured, it was {shell.sample.returned}"
        )
    return leaves


class KeptModule(nn.Module):
    """Calls a module of the user's on its tensors; gives a list of its results. It follows the mode."""

    shell: Shell
    module: nn.Module

    def __init__(self, name: str, trains: bool) -> None:
        super().__init__()
        self.trains, shell = trains, shell_of(name)
        # No child of this module: what it holds has no values.
        self.__dict__["shell"], self.__dict__["module"] = shell, without_tensors(shell.module)

    def forward(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        set_mode(self.module, training=self.training and self.trains, held=self.shell.held)
        return run(self.shell, self.module, inputs, state)

    def extra_repr(self) -> str:
        return self.shell.title


def items(returned: TreeSpec) -> list[tuple[Any, ...]] | None:
    """How to reach every leaf of a result by indices, one after the other; None where that is not possible."""
    tree = unflatten(list(range(returned.num_leaves)), returned)
    found = dict(_items(tree, ()))
    return [found[leaf] for leaf in range(returned.num_leaves)] if len(found) == returned.num_leaves else None


def _items(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    if type(tree) is int:
        yield tree, path
    elif isinstance(tree, tuple | list):
        for place, one in enumerate(tree):
            yield from _items(one, (*path, place))
    elif isinstance(tree, dict):
        for key, one in tree.items():
            yield from _items(one, (*path, key))


def _kept_module(inputs: Sequence[Tensor], state: Sequence[Tensor], module: str, training: bool) -> list[Tensor]:
    shell = shell_of(module)
    if all(map(has_values, (*inputs, *state))):
        own = without_tensors(shell.module)
        set_mode(own, training=training, held=shell.held)
        return run(shell, own, inputs, state)
    refused = shell.sample.refusal(inputs)
    if refused is not None:
        raise RuntimeError(f"{shell.title}, which is kept whole, {refused}")
    return [
        inputs[0].new_empty([_extent(size, inputs) for size in sizes], dtype=dtype)
        for sizes, dtype in shell.sample.results
    ]


def _extent(size: Extent, inputs: Sequence[Tensor]) -> Any:
    return size.factor * inputs[size.place].shape[size.dim] if isinstance(size, Multiple) else size


LIBRARY.define("kept_module(Tensor[] inputs, Tensor[] state, str module, bool training) -> Tensor[]")
# Made of differentiable calls, so autograd sees through it.
LIBRARY.impl("kept_module", _kept_module, "CompositeImplicitAutograd")

KEPT_MODULE = torch.ops.anytimeify.kept_module.default
