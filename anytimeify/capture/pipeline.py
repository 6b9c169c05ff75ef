"""`capture`: any backbone to a canonical program. Read this file first; every step is a file beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from anytimeify.capture.from_exported import from_exported
from anytimeify.capture.from_module import from_module
from anytimeify.capture.inputs import CallInputs, call_inputs
from anytimeify.capture.on_meta import Shell, is_on_meta, with_values, without_values
from anytimeify.capture.ownership import Owner
from anytimeify.capture.reinitialise import redrawn
from anytimeify.capture.sources.registry import infer, notes_on
from anytimeify.errors import CaptureError
from anytimeify.ir import Captured

__all__ = ["capture"]


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    output: int | str | None = None,
    check: bool = True,
    copied: bool = True,
    traced: bool = False,
) -> Captured:
    """A backbone in canonical form; `model` and its tensors stay untouched, the program holds copies. With
    `copied=False` its tensors are in the memory of the model's, and nothing may write to them.

    `example_inputs`: a tensor, a tuple of positional or a mapping of keyword arguments; inferred where the model tells.
    `dynamic_shapes`: as in `torch.export`; by default the common first dimension of the inputs is dynamic.
    `output`: which of several outputs of eval mode is the prediction: a position, a field, or a path such as
    `"heads.0"`; `"all"` captures everything that the model returns, in both modes.
    `check`: compare with the backbone in eval mode on the example inputs, unless the backbone is on the meta device;
    with `traced` without computing anything, where that is quicker and tells.

    Raises `CaptureError` when the model cannot be exported or does not survive it, `UnsupportedOpError` when an
    operation has no functional meaning, `VerificationError` when the model is random in eval mode.
    """
    if copied:
        captured = capture(
            model,
            example_inputs,
            dynamic_shapes=dynamic_shapes,
            output=output,
            check=check,
            copied=False,
            traced=traced,
        )
        program = replace(captured.program, tensors=Owner([model]).own(captured.program.tensors))
        return replace(captured, program=program)
    everything = output == "all"
    output = None if everything else output
    if isinstance(model, ExportedProgram):
        return from_exported(model, example_inputs, output, everything=everything, check=check)
    if not _is_backbone(model):
        raise CaptureError(f"A backbone is an nn.Module or an ExportedProgram, not a {type(model).__name__}.")
    with torch.inference_mode(False):
        model = _traceable(model)
        shell = Shell.of(model) if is_on_meta(model) else None
        model = model if shell is None else shell.model
        inputs = infer(model) if example_inputs is None else call_inputs(example_inputs)
        if shell is None:
            _check_values(inputs)
        inputs = (inputs if shell is None else with_values(inputs)).outside_inference_mode()
        captured = from_module(
            model,
            inputs,
            dynamic_shapes,
            output,
            everything=everything,
            check=check,
            traced=traced,
            shell=shell,
        )
    captured = replace(captured, notes=(*captured.notes, *notes_on(model)))
    return (
        replace(captured, reinitialised=partial(redrawn, model)) if shell is None else without_values(captured, shell)
    )


def _is_backbone(model: object) -> bool:
    """Compiled TorchScript is an nn.Module too, but holds no Python that could be traced."""
    return isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)


def _traceable(model: nn.Module) -> nn.Module:
    """The model; a copy of it where tensors were made under `torch.inference_mode`, for they take no gradient.

    `CaptureError` where a tensor has no shape."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise CaptureError(f"'{name}' is not initialised: run the lazy model once before it is transformed.")
    return copy.deepcopy(model) if any(tensor.is_inference() for _, tensor in tensors) else model


def _check_values(inputs: CallInputs) -> None:
    if any(tensor.is_meta for tensor in inputs.tensors):
        raise CaptureError("An example input is on the meta device and has no values. Pass tensors with values.")
