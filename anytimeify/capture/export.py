"""The one front end: `torch.export` on the model in train mode, with errors that say what to do.

The model is left as it was: training flags, momenta and other attributes are set and restored one by one, and nothing
is written to its tensors.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from anytimeify._torch import quiet_exporter
from anytimeify.capture.custom_derivatives import kept
from anytimeify.capture.fallbacks import WAYS, Way, reads_values
from anytimeify.capture.inputs import CallInputs, repeated, shapes_of_batch
from anytimeify.capture.kept_whole import KeptWhole
from anytimeify.capture.modes import attributes_kept, in_mode
from anytimeify.errors import AnytimeError, CaptureError
from anytimeify.operators.modules import CUMULATIVE

__all__ = ["does_not_run", "explain", "export", "reason_of", "shown"]


@contextmanager
def _cumulative_averages(model: nn.Module) -> Iterator[None]:
    """Norms with `momentum=None` say so in the graph by the number that stands for it."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    norms = [module for module in model.modules() if isinstance(module, kinds) and module.momentum is None]
    try:
        for norm in norms:
            norm.momentum = CUMULATIVE
        yield
    finally:
        for norm in norms:
            norm.momentum = None


@contextmanager
def _on_one_device(model: nn.Module) -> Iterator[None]:
    """`nn.DataParallel` calls its module where that is, instead of scattering the batch over streams of GPUs."""
    parallel = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    devices = [module.device_ids for module in parallel]
    try:
        for module in parallel:
            module.device_ids = []
        yield
    finally:
        for module, ids in zip(parallel, devices, strict=True):
            module.device_ids = ids


def export(
    model: nn.Module,
    inputs: CallInputs,
    dynamic_shapes: Any,
    *,
    training: bool,
    held: frozenset[str] = frozenset(),
    whole: KeptWhole | None = None,
) -> tuple[ExportedProgram, str | None]:
    """`torch.export`, the batch dynamic where `dynamic_shapes` is None, modules `held` in eval mode in any case, those
    of `whole` as they are; and a note on the way that it took, where that was not the first (see
    `anytimeify.capture.fallbacks`).

    Raises whatever `torch.export` raises at the first: see `explain`."""
    inputs = inputs.aliased()
    if dynamic_shapes is None:
        inputs = repeated(inputs)
        dynamic_shapes = shapes_of_batch(model, inputs)
    first: Exception | None = None
    with (
        in_mode(model, training=training, held=held),
        _cumulative_averages(model),
        _on_one_device(model),
        nullcontext() if whole is None else whole.replaced(inputs, training=training, held=held),
        torch.enable_grad(),
        warnings.catch_warnings(),
        quiet_exporter(),
    ):
        warnings.simplefilter("ignore")  # the exporter's advice on its own internals
        for way in WAYS:
            if first is not None and not way.cures(first):
                continue
            try:
                found = _exported(model, inputs, dynamic_shapes, way)
            except Exception as error:
                first = first or error
                continue
            if first is None or not reads_values(found):
                return found, way.note
    assert first is not None
    raise first


def _exported(model: nn.Module, inputs: CallInputs, dynamic_shapes: Any, way: Way) -> ExportedProgram:
    with attributes_kept(model), kept(), way.around(model):
        return torch.export.export(
            model, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes or None, strict=way.strict
        )


_DATA_DEPENDENT = re.compile(
    r"data.dependent|unbacked|GuardOnDataDependent|DynamicOutputShape|on the value of|aten\.nonzero|_local_scalar"
)
_UNKNOWN_TYPE = re.compile(r"(?:Unsupported input type|Found) <class '(?:[\w.<>]+\.)?(\w+)'>")


def explain(model: nn.Module, inputs: CallInputs, error: Exception) -> CaptureError:
    """What went wrong in an export, in words; looks for the reason by running the model."""
    name = type(model).__qualname__
    where = _where(error)
    own = _runs(model, inputs)
    if isinstance(own, AnytimeError):  # of a network that we built from a file
        return CaptureError(str(own))
    if own is not None:
        return does_not_run(model, inputs, own)
    if isinstance(error, CaptureError):
        return error
    text = f"{type(error).__name__}: {error}"
    if (unknown := _UNKNOWN_TYPE.search(text)) is not None:
        return CaptureError(
            f"{name} takes or returns a {unknown[1]}, whose tensors torch cannot see. If it is a dataclass, call "
            "torch.export.register_dataclass on it once; else use tuples, lists or dicts of tensors."
        )
    if _DATA_DEPENDENT.search(text):
        told = f": {line}" if (line := _line(error)) else ""
        return CaptureError(
            f"{name} has control flow or sizes that depend on the values of tensors{where}{told}. "
            "A graph cannot say that: replace the branch by arithmetic (torch.where), take it out of forward(), or put "
            "it into a sub-module of its own, which is then kept whole."
        )
    return CaptureError(
        f"torch.export cannot capture {name}{where}: {_reason(error)}. "
        "Change that line of the model, or pass an ExportedProgram that you made."
    )


def does_not_run(model: nn.Module, inputs: CallInputs, error: Exception) -> CaptureError:
    """The model cannot be called in this way at all."""
    name = type(model).__qualname__
    given = {tensor.device for tensor in inputs.tensors if tensor.dim() > 0}
    own = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if given and own and not given & own:
        return CaptureError(
            f"{name} is on {_listed(own)}, but the example inputs are on {_listed(given)}. Move one of them: "
            f"example_inputs that are on {_listed(own)}, or model.to({_listed(given)!r})."
        )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
    return CaptureError(
        f"{name} does not run on the example inputs ({f'shapes {shapes}' if shapes else 'no tensor among them'}): "
        f"{_first_line(error)}{_where(error)}. Pass example_inputs that the model accepts."
    )


def _listed(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))


def _runs(model: nn.Module, inputs: CallInputs) -> Exception | None:
    try:
        with in_mode(model, training=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        return error
    return None


def _where(error: BaseException) -> str:
    """Where the innermost line of the user's code stands: outside torch and outside this package."""
    found = _innermost(error)
    return f" at {found.filename.rpartition('/')[2]}:{found.lineno} in {found.name}" if found is not None else ""


def _line(error: BaseException) -> str:
    """That line; empty where it cannot be read."""
    found = _innermost(error)
    return (found.line or "").strip() if found is not None else ""


def _innermost(error: BaseException) -> traceback.FrameSummary | None:
    ours, theirs = __name__.partition(".")[0], "torch"
    frames = list(traceback.walk_tb(error.__traceback__))
    for (frame, _), summary in zip(reversed(frames), reversed(traceback.extract_tb(error.__traceback__)), strict=True):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in (ours, theirs) and frame.f_code.co_filename.endswith(".py"):
            return summary
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """The reason why a batch is not dynamic, with the line of the user's code where the exporter knows it."""
    made_a_number = not isinstance(error, AnytimeError) and "pecializ" in str(error)
    return ("forward() makes a plain number of it" if made_a_number else _reason(error)) + _where(error)


def shown(error: BaseException) -> str:
    """Why an export failed, with the line of the user's code."""
    text = f"{type(error).__name__}: {error}"
    line = _line(error)
    why = "something depends on the values of tensors" if _DATA_DEPENDENT.search(text) else _reason(error)
    return f"{why}{_where(error)}" + (f": {line}" if line else "")


def _reason(error: BaseException) -> str:
    """The line of an exporter's long message that gives the reason."""
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "pecializ" in line or "must be" in line or "Not all values" in line]
    return ((telling or lines or [type(error).__name__])[0]).rstrip(".")
