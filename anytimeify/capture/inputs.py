"""Example inputs: how the user may give them, where they are inferred from, which of their sizes is the batch."""

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

__all__ = ["Arguments", "CallInputs", "call_inputs", "in_order", "infer", "owns_storage", "repeated", "shapes_of_batch"]


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


def shapes_of_batch(model: nn.Module, inputs: CallInputs) -> Any:
    """`dynamic_shapes` in which the first dimension of every input of the common batch is dynamic."""
    if inputs.batch == 0:
        raise CaptureError("The example inputs hold no sample: their first size is 0. Pass at least one sample.")
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


def repeated(inputs: CallInputs) -> CallInputs:
    """A batch of 1 as a batch of 2: the exporter takes sizes of 0 and 1 for constants."""
    if inputs.batch != 1:
        return inputs
    leaves, spec = flatten((inputs.args, dict(inputs.kwargs)))
    leaves = [
        torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 1 else leaf
        for leaf in leaves
    ]
    args, kwargs = unflatten(leaves, spec)
    return CallInputs(args, kwargs)


def infer(model: nn.Module) -> CallInputs:
    """Inputs for models that say themselves what they take.

    timm: `pretrained_cfg["input_size"]`; transformers: an image of the configured size, or `dummy_inputs`;
    torchvision: an image of 224 pixels a side (Inception v3: 299), or of the model's own `image_size`. A module of
    torchvision does not say more; the source `torchvision:NAME` knows the metadata of the weights.
    """
    for source in (_timm, _transformers, _torchvision):
        found = source(model)
        if found is not None:
            return found
    raise CaptureError(
        f"Nothing tells the input of {type(model).__module__}.{type(model).__qualname__}. "
        "Pass example_inputs, for instance example_inputs=(torch.randn(2, 3, 224, 224),)."
    )


def _image(model: nn.Module, *size: int) -> CallInputs:
    parameter = next(model.parameters(), None)
    generator = torch.Generator().manual_seed(0)  # the caller's random state is left alone
    image = torch.randn(2, *size, generator=generator)
    return CallInputs((image if parameter is None else image.to(parameter.device, parameter.dtype),), {})


def _timm(model: nn.Module) -> CallInputs | None:
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if size is None:
        return None
    patches = getattr(model, "patch_embed", None)
    actual = getattr(patches, "img_size", None)  # create_model(..., img_size=96) does not reach the config
    if isinstance(actual, (tuple, list)) and len(actual) == len(size) - 1:
        size = (size[0], *actual)
    channels = getattr(model, "in_chans", None)
    return _image(model, int(channels or size[0]), *map(int, size[1:]))


def _transformers(model: nn.Module) -> CallInputs | None:
    if not any(base.__module__.partition(".")[0] == "transformers" for base in type(model).__mro__):
        return None
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        image = _image(model, int(getattr(config, "num_channels", 3)), height, width)
        return CallInputs((), {"pixel_values": image.args[0]})
    dummies = getattr(model, "dummy_inputs", None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(dummies, Mapping) and dummies:
        # a cache among the results is no tensor, and there is none to fill
        without = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in dummies.items()}
        return CallInputs((), {**given, **without})
    return None


def _torchvision(model: nn.Module) -> CallInputs | None:
    module = type(model).__module__
    if not module.startswith("torchvision.models.") or module.startswith(
        ("torchvision.models.detection", "torchvision.models.optical_flow", "torchvision.models.video")
    ):
        return None
    size = getattr(model, "image_size", 299 if module.endswith("inception") else 224)
    return _image(model, 3, int(size), int(size)) if isinstance(size, int) else None
