"""Backbones on the meta device: modules whose tensors have shapes and no values.

    with torch.device("meta"):
        model = LlamaForCausalLM(config)        # 70 billion parameters, no memory

Exported as it is, such a model would have `device=meta` in its graph, and constants there without values. So a copy is
exported whose tensors say that they are on the CPU, and have no data either (a `Shell`); the captured program gets the
backbone's own tensors. Without values nothing can be run and compared: see `anytimeify.capture.both_modes`.

Checkpoints give values to what a state dict holds. Buffers that it does not hold keep theirs, where the model has them
(`parameters_on_meta`), or get those that their initialisers compute (`anytimeify.capture.computed_buffers`). They are
on the CPU, and the only tensors of the result that are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.module import register_module_parameter_registration_hook

from anytimeify._torch import flatten, unflatten, without_data
from anytimeify.capture.computed_buffers import computed_buffers
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.modes import refuse_hooks
from anytimeify.errors import CaptureError
from anytimeify.ir import Captured

__all__ = ["Shell", "is_on_meta", "parameters_on_meta", "with_values", "without_values"]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """What is built inside has parameters without values, on the meta device, and everything else as it is: buffers
    that are computed, and numbers that a constructor makes of tensors.

        with anytimeify.parameters_on_meta():
            model = timm.create_model("vit_giant_patch14_224")
    """

    def moved(module: nn.Module, name: str, parameter: Any) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]  # what it gives is registered
    try:
        yield
    finally:
        handle.remove()


def is_on_meta(model: nn.Module) -> bool:
    """Whether a parameter or buffer of the model has no values."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class Shell:
    """A copy of a backbone that can be exported, and what its tensors stand for."""

    model: nn.Module
    tensors: Mapping[str, Tensor]  # by name: those of the backbone, without values or with those that are known
    unknown: tuple[str, ...]  # buffers that no checkpoint gives values, and nobody knows them

    @staticmethod
    def of(model: nn.Module) -> Shell:
        """Raises `CaptureError` for what cannot be copied, and for tensors without values that are neither parameters
        nor buffers, which nothing would ever give some."""
        _refuse_attributes(model)
        refuse_hooks(model)
        transient = _transient(model)
        missing = [name for name in transient if model.get_buffer(name).is_meta]
        computed = computed_buffers(model, missing)
        known = {id(model.get_buffer(name)): value for name, value in computed.items()}
        originals = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        memo: dict[int, Any] = {**originals, **known}
        empty = [tensor for place, tensor in originals.items() if tensor.is_meta and place not in known]
        memo.update(zip(map(id, empty), without_data(empty, "cpu"), strict=True))
        try:
            shell = copy.deepcopy(model, memo)
        except Exception as error:
            raise CaptureError(
                f"{type(model).__qualname__} has tensors without values (on the meta device), and is exported as a "
                f"copy; it cannot be copied ({type(error).__name__}: {error}). Give it its weights first"
            ) from error
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        named = {name: known.get(id(tensor), tensor) for name, tensor in tensors}
        return Shell(shell, named, tuple(name for name in missing if name not in computed))

    def restore(self, exported: ExportedProgram) -> ExportedProgram:
        """An export of the copy, with the backbone's tensors."""
        for held in (exported.state_dict, exported.constants):
            held.update({name: self.tensors[name] for name in held.keys() & self.tensors.keys()})
        return exported


def with_values(inputs: CallInputs) -> CallInputs:
    """The same call; tensors without values are random numbers, or zeros, which are indices of anything."""
    generator = torch.Generator().manual_seed(0)

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        if not leaf.is_floating_point():
            return torch.zeros(leaf.shape, dtype=leaf.dtype, device="cpu")
        return torch.randn(leaf.shape, generator=generator, device="cpu").to(leaf.dtype)

    leaves, spec = flatten((inputs.args, dict(inputs.kwargs)))
    return CallInputs(*unflatten(list(map(made, leaves)), spec))


def without_values(captured: Captured, shell: Shell) -> Captured:
    """What was captured of a shell, with notes on what has to be known of a model without values."""
    note = (
        "the backbone is on the meta device: that this graph computes what it does was not checked; what a scheme adds "
        "starts, once the backbone's weights are loaded, as copies of them"
    )
    captured = replace(captured, notes=(*captured.notes, note))
    read = [name for name in shell.unknown if name in captured.program.tensors]
    if not read:
        return captured
    shown = ", ".join(f"'{name}'" for name in read[:3]) + (f" and {len(read) - 3} more" if len(read) > 3 else "")
    note = f"on the meta device, in no checkpoint, and computed by no initialiser of the backbone: {shown}"
    return replace(captured, notes=(*captured.notes, note))


def _transient(model: nn.Module) -> list[str]:
    """The buffers that are no part of a state dict."""
    stored = model.state_dict(keep_vars=True).keys()
    return [name for name, _ in model.named_buffers() if name not in stored]


def _refuse_attributes(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in flatten(value)[0]):
                where = f"{path}.{name}" if path else name
                raise CaptureError(
                    f"'{where}' is a tensor on the meta device that is neither a parameter nor a buffer: it has no "
                    "values, and no checkpoint gives it some. Build the model with only its parameters there: "
                    "with anytimeify.parameters_on_meta(): ..."
                )
