"""Example inputs: how the user may give them, which of their sizes is the batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from anytimeify._torch import TreeSpec, flatten, unflatten
from anytimeify.errors import CaptureError

__all__ = [
    "Arguments",
    "CallInputs",
    "call_inputs",
    "image",
    "in_order",
    "of_batch",
    "owns_storage",
    "repeated",
    "shapes_of_batch",
]


@dataclass(frozen=True)
class CallInputs:
    """One call of a model: `model(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in flatten((self.args, dict(self.kwargs)))[0] if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int | None:
        """The size that inputs share as their first: that of the first tensor input which is no scalar."""
        return next((int(tensor.shape[0]) for tensor in self.tensors if tensor.dim() > 0), None)

    def outside_inference_mode(self) -> CallInputs:
        """Tensors made under `torch.inference_mode` cannot be traced with gradients: copies of those, outside of it."""
        leaves, spec = flatten((self.args, dict(self.kwargs)))
        if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves):
            return self
        args, kwargs = unflatten(
            [leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf for leaf in leaves], spec
        )
        return CallInputs(args, kwargs)

    def aliased(self) -> CallInputs:
        """The same call with other tensors on the same data: an exporter marks those that it is given."""
        leaves, spec = flatten((self.args, dict(self.kwargs)))
        aliases = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        return CallInputs(*unflatten(aliases, spec))

    def owned(self) -> CallInputs:
        """The same call; tensors that see a part of a larger storage, two images of a data set, as copies."""
        leaves, spec = flatten((self.args, dict(self.kwargs)))
        args, kwargs = unflatten([_owned(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        return CallInputs(args, kwargs)

    def flat(self, in_spec: TreeSpec) -> list[Any]:
        """Leaves in the order in which the exporter saw them: it sorts keyword arguments by the signature."""
        count = in_spec.num_leaves
        _, kwargs = unflatten(list(range(count)), in_spec)
        if set(kwargs) != set(self.kwargs):
            raise CaptureError(f"Keyword inputs {sorted(self.kwargs)} were given, {sorted(kwargs)} are expected.")
        return flatten((self.args, {name: self.kwargs[name] for name in kwargs}))[0]


def owns_storage(tensor: Tensor) -> bool:
    """Whether a tensor's storage holds its own elements and no others."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return True
    return bool(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size())


def _owned(tensor: Tensor) -> Tensor:
    return tensor if owns_storage(tensor) else tensor.detach().clone()


def call_inputs(example_inputs: Any) -> CallInputs:
    """A tensor is the one argument, a mapping holds keyword arguments, a sequence positional ones."""
    if isinstance(example_inputs, CallInputs):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        return CallInputs((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        return CallInputs((), dict(example_inputs))
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return CallInputs(tuple(example_inputs), {})
    raise CaptureError(
        f"example_inputs is a {type(example_inputs).__name__}. "
        "Pass a tensor, a tuple of positional arguments, or a mapping of keyword arguments."
    )


@dataclass(frozen=True)
class Arguments:
    """What the signature of forward() says of a call."""

    names: tuple[str, ...]  # of the positional arguments, "" where they have none (`*args`)
    positional: int | None  # how many arguments may be given by position; None if that is not known


def in_order(model: nn.Module, inputs: CallInputs) -> tuple[CallInputs, Arguments]:
    """Keyword arguments in the order of the signature, and what else it says.

    An optional parameter that was left out ends what may be given by position: the next one would take its place.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # written in C
        return inputs, Arguments((), None)
    order = {parameter.name: index for index, parameter in enumerate(parameters)}
    kwargs = dict(sorted(inputs.kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    places = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    names = tuple(places[index] if index < len(places) else "" for index in range(len(inputs.args)))
    positional = len(names)
    while positional < len(places) and places[positional] in kwargs:
        positional += 1
    return CallInputs(inputs.args, kwargs), Arguments(names, positional)


def refuse_no_sample(inputs: CallInputs) -> None:
    if inputs.batch == 0:
        raise CaptureError("The example inputs hold no sample: their first size is 0. Pass at least one sample.")


def shapes_of_batch(model: nn.Module, inputs: CallInputs) -> Any:
    """`dynamic_shapes` in which the first dimension of every input of the common batch is dynamic."""
    unnamed = _unnamed_keywords(model, inputs)
    if unnamed:
        raise CaptureError(
            f"{type(model).__qualname__} takes {', '.join(unnamed)} through **kwargs of its forward(), and "
            "torch.export makes no batch of such inputs dynamic. Name them in the signature of forward(), or pass "
            "dynamic_shapes={} to keep every size as in the example."
        )
    shapes = ShapesCollection()
    for tensor in inputs.tensors:
        if tensor.dim() > 0 and tensor.shape[0] == inputs.batch:
            shapes[tensor] = {0: Dim.DYNAMIC}
    return shapes.dynamic_shapes(model, inputs.args, dict(inputs.kwargs))


def _unnamed_keywords(model: nn.Module, inputs: CallInputs) -> list[str]:
    signature = inspect.signature(model.forward)
    known = [one.name for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    has_rest = len(known) < len(signature.parameters)
    return [name for name in inputs.kwargs if name not in known] if has_rest else []


def of_batch(inputs: CallInputs, count: int) -> CallInputs:
    """The inputs as a batch of `count` samples: the first of them, or all again and again."""

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != inputs.batch or inputs.batch == count:
            return leaf
        return leaf.detach()[torch.arange(count, device=leaf.device) % leaf.shape[0]]

    leaves, spec = flatten((inputs.args, dict(inputs.kwargs)))
    return CallInputs(*unflatten([resized(leaf) for leaf in leaves], spec))


def repeated(inputs: CallInputs) -> CallInputs:
    """A batch of 1 as a batch of 2: the exporter takes sizes of 0 and 1 for constants."""
    return of_batch(inputs, 2) if inputs.batch == 1 else inputs


def image(model: nn.Module, *size: int) -> CallInputs:
    """Two images of a size, of the type of a model's parameters and on their device."""
    parameter = next(model.parameters(), None)
    generator = torch.Generator().manual_seed(0)  # the caller's random state is left alone
    image = torch.randn(2, *size, generator=generator)
    return CallInputs((image if parameter is None else image.to(parameter.device, parameter.dtype),), {})
