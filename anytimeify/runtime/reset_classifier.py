"""A model that is there gets heads for another number of classes, in place; and a look at heads that were replaced by
hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes, analyse
from anytimeify.codegen.to_modules import backbone_name, to_modules
from anytimeify.errors import ArgumentValueError, SchemeError
from anytimeify.ir import Captured, names
from anytimeify.ir.node_meta import renamed_of, type_of
from anytimeify.ir.rewritten import Rewritten
from anytimeify.operators.modules import Added, Part
from anytimeify.passes.rewrites.new_head import with_classes
from anytimeify.runtime.compiled import Compiled, freeze_unread
from anytimeify.runtime.definition import Definition

__all__ = ["check_shapes", "new_heads"]


def new_heads(module: nn.Module, compiled: Compiled, live: Mapping[str, Tensor], classes: Any) -> Compiled:
    """Puts new heads into the modules of a model, and gives what it is then.

    The scheme is applied to the backbone with a new head. What has another shape for another number of classes, at any
    level, is new; every other tensor, and every module that holds none of the new ones, stays the same object.
    `live` are the tensors of the model, by name.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ArgumentValueError(f"classes is {classes!r}: expected a number of classes, 1 or more")
    definition = compiled.definition
    if definition.options.taxonomy is not None:
        raise SchemeError(
            "the taxonomy of this model says how many classes every granularity has, so its heads cannot be replaced: "
            "transform the backbone, with its own new head, and the taxonomy of its classes"
        )
    before = _as_made(definition, live)
    captured = definition.captured_with(before)
    made, axes, rewritten = _made(definition, captured, classes)
    same = [type_of(node) for node in made.program.outputs] == [type_of(node) for node in captured.program.outputs]
    other = _made(definition, captured, classes + 1)[2] if same else definition.rewritten
    shapes = {name: tensor.shape for name, tensor in other.program.tensors.items()}
    found = rewritten.program.tensors
    new = {name for name, tensor in found.items() if shapes.get(name) != tensor.shape}
    tensors = {name: tensor if name in new else before.get(name, tensor) for name, tensor in found.items()}
    check_shapes(definition, {name: tensor for name, tensor in live.items() if name not in new})
    rewritten = replace(rewritten, program=replace(rewritten.program, tensors=tensors))
    network = to_modules(rewritten.program)
    freeze_unread(rewritten.program)
    for path, part in list(network.named_modules()):
        _install(module, path, part, _own(network, path, part) & new)
    held = {**live, **{name: tensors[name] for name in new}}
    changed = Definition.of(made, axes, definition.scheme, rewritten, definition.options, owned=held)
    return compiled.replaced(module, changed, network.graph)


def _made(definition: Definition, captured: Captured, classes: int) -> tuple[Captured, Axes, Rewritten]:
    """The backbone with a new head, and what the scheme makes of it."""
    with torch.inference_mode(False):
        made = with_classes(*definition.recast_with(captured), classes)
        axes = analyse(made.program)
        return made, axes, definition.options.apply(definition.scheme, made, axes)


def _as_made(definition: Definition, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the model was made with, as they are now; zeros for those that were replaced by tensors of
    another shape, or are under another name (in a wrapper)."""
    like = next((tensor for tensor in live.values() if tensor.is_floating_point()), torch.empty(0))
    result = dict(live)
    for name, known in definition.rewritten.program.tensors.items():
        if name not in live or live[name].shape != known.shape:
            dtype = like.dtype if known.is_floating_point() else known.dtype
            blank = torch.zeros(known.shape, dtype=dtype, device=like.device)
            result[name] = nn.Parameter(blank) if isinstance(known, nn.Parameter) else blank
    return result


def _own(network: fx.GraphModule, path: str, part: nn.Module) -> Set[str]:
    """The names, as the backbone has them, of the tensors that a part holds itself."""
    renamed = renamed_of(network)
    held = [*part._parameters, *part._buffers]
    return {backbone_name(f"{path}.{name}" if path else name, renamed) for name in held}


def _install(module: nn.Module, path: str, part: nn.Module, new: Set[str]) -> None:
    """Takes over one part of a new network, if it is another than before."""
    present = _find(module, path)
    if present is not None and not new:
        same = type(present) is not type(part) or present.extra_repr() == part.extra_repr()
        if same or _holds_tensors(part):
            return
    if present is not None and (not path or isinstance(part, Part | Added)):
        last = {names.split(name)[1] for name in new}
        present._parameters.update({name: one for name, one in part._parameters.items() if name in last})
        present._buffers.update({name: one for name, one in part._buffers.items() if name in last})
        return
    parent, name = names.split(path)
    owner = _find(module, parent)
    assert owner is not None  # parents come first
    if present is not None:
        part.training = present.training
        part._modules.update(present._modules)
    owner._modules[name] = part


def _holds_tensors(part: nn.Module) -> bool:
    return bool(part._parameters or part._buffers)


def _find(module: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = module
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    return found


def check_shapes(definition: Definition, tensors: Mapping[str, Tensor]) -> None:
    """Raises `ArgumentValueError` where a tensor was replaced by one of another shape, with which the levels do not fit
    together any more. Tensors under other names (a layer in a wrapper) may be of any."""
    for name, wrong, shape in _wrong(definition, tensors):
        raise ArgumentValueError(
            f"{name} was replaced: it has the shape {tuple(wrong)}, and the levels of this model are made for "
            f"{tuple(shape)}. Another number of classes at every level is net.reset_classifier(classes); for other "
            "changes, change the backbone and transform it again"
        )


def _wrong(definition: Definition, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, torch.Size, torch.Size]]:
    for name, tensor in definition.rewritten.program.tensors.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            yield name, tensors[name].shape, tensor.shape
