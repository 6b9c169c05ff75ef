"""Extracted levels as files: `.pt2` (torch.export), `.onnx`, and `.safetensors` with the weights alone.

Each function writes one file, whole or not at all, after the result of the file was compared with that of the module.
The batch is dynamic unless `dynamic_batch=False`. `example_inputs` are those of the module: a tensor, a tuple of
positional or a mapping of keyword arguments. With `replace`, a file that is there makes room when the new one is whole.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from anytimeify.capture.inputs import CallInputs, call_inputs, of_batch, owns_storage, repeated, shapes_of_batch
from anytimeify.capture.kept_whole import culprit
from anytimeify.errors import ArtifactError, CaptureError, MissingExtraError, VerificationError, first_line
from anytimeify.io.files import new_file
from anytimeify.process import ONE_AT_A_TIME
from anytimeify.storage.flat_outputs import tensors_of
from anytimeify.storage.onnx_model import onnx_model, output_names, save_onnx

__all__ = [
    "FORMATS",
    "cases",
    "compare",
    "export_onnx",
    "export_pt2",
    "export_weights",
    "exported",
    "onnx_refusals",
    "onnx_session",
    "quiet",
    "require",
    "traced",
]

# Formats that need packages of the extra of their name: what they are called, and the packages.
_NEEDS = {"onnx": ("ONNX", ("onnx", "onnxscript", "onnxruntime")), "executorch": ("ExecuTorch", ("executorch",))}
_TOLERANCE = 1e-4  # of the largest magnitude: other runtimes order their sums otherwise


def export_pt2(
    extract: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_batch: bool = True,
    *,
    replace: bool = False,
) -> None:
    """Writes a program that `torch.export.load` reads.

    Raises `ArtifactError` where nothing can be written or the file exists, `CaptureError` where torch.export refuses,
    `VerificationError` where the file computes something else.
    """
    with new_file(path, replace=replace) as temporary, quiet():
        inputs, program = traced(extract, example_inputs, dynamic_batch)
        torch.export.save(program, temporary)
        try:
            written = torch.export.load(temporary)
        except Exception as error:
            raise ArtifactError(
                f"'{path}' was not written: torch cannot read the file that it made of this network, whose results may "
                f"hold constants that such files cannot ({first_line(error)}). Export to onnx instead"
            ) from error
        _compare(extract, inputs, dynamic_batch, _run_program(written), str(path))


def export_onnx(
    extract: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_batch: bool = True,
    *,
    replace: bool = False,
) -> None:
    """Writes an ONNX model, compared with torch in onnxruntime. Needs the extra `onnx`; raises as `export_pt2` does.

    Where the module returns several tensors, they are called as in the structure: `logits`, `hidden_states_0`, or
    `output_1` of a tuple. Constants among them are left out.

    Weights of more than 1 GiB go into a second file beside it, `NAME.data`.
    """
    require("onnx")
    with new_file(path, replace=replace) as temporary, quiet():
        inputs, program = traced(extract, example_inputs, dynamic_batch)
        save_onnx(onnx_model(program, str(path), outputs=output_names(program)), temporary)
        _compare(extract, inputs, dynamic_batch, _run_onnx(temporary), str(path))


def export_weights(
    extract: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_batch: bool = True,
    *,
    replace: bool = False,
) -> None:
    """Writes the state dict alone, for a program that builds the small network itself."""
    with new_file(path, replace=replace) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in extract.state_dict().items()}
        temporary.write_bytes(safetensors.torch.save(tensors))


FORMATS: Mapping[str, Callable[..., None]] = {
    "pt2": export_pt2,
    "onnx": export_onnx,
    "safetensors": export_weights,
}
"""What writes a level, by the file's suffix; called as `export_pt2` is."""


def require(format: str) -> None:
    """Raises `MissingExtraError` where a format needs a package that is not installed."""
    called, packages = _NEEDS.get(format, (format, ()))
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, format, f"Writing {called}")


def exported(module: nn.Module, inputs: CallInputs, shapes: Any) -> ExportedProgram:
    """The module as torch.export sees it, holding no more than a file needs. `CaptureError` where it refuses."""
    owned = inputs.owned()
    try:
        with torch.no_grad():
            program = torch.export.export(module, owned.args, dict(owned.kwargs), dynamic_shapes=shapes)
    except Exception as error:
        path = culprit(module, error, {})
        kept = ""
        if path is not None:
            kind = type(module.get_submodule(path)).__name__
            kept = (
                f", in '{path}' ({kind}), a module of the backbone that is kept whole; its weights alone can be written"
            )
        raise CaptureError(f"torch.export cannot export the extracted level: {first_line(error)}{kept}") from error
    _keep_own_elements(program)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of torch's own files, by paths of this machine
    return program


def _keep_own_elements(program: ExportedProgram) -> None:
    """Copies tensors that see a part of a larger storage, all of which would be written; one copy for each view."""
    copies: dict[Any, Tensor] = {}
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or owns_storage(tensor):
                continue
            view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            copy = copies.setdefault(view, tensor.detach().clone())
            parameter = isinstance(tensor, nn.Parameter)
            tensors[name] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy


def traced(extract: nn.Module, example_inputs: Any, dynamic_batch: bool) -> tuple[CallInputs, ExportedProgram]:
    """The module as a program, and the inputs that it was traced with. `CaptureError` where torch.export refuses."""
    inputs = call_inputs(example_inputs)
    shapes = None
    if dynamic_batch:
        inputs = repeated(inputs)
        shapes = shapes_of_batch(extract, inputs)
    return inputs, exported(extract, inputs, shapes)


def _run_program(program: ExportedProgram) -> Callable[[CallInputs], Any]:
    module = program.module()
    return lambda inputs: module(*inputs.args, **inputs.kwargs)


def _run_onnx(path: Path) -> Callable[[CallInputs], list[Tensor]]:
    with onnx_refusals():
        session = onnx_session(path)
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: CallInputs) -> list[Tensor]:
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs.tensors]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(result) for result in results]

    return run


@contextmanager
def onnx_refusals() -> Iterator[None]:
    """`ArtifactError` where onnxruntime does not take a file that was just made."""
    try:
        yield
    except Exception as error:  # its errors share no class of their own
        raise ArtifactError(
            f"ONNX was not written: onnxruntime refuses the file that torch made of this network "
            f"({first_line(error)}). Export to pt2 instead"
        ) from error


def onnx_session(path: Path, threads: int | None = None) -> Any:
    """onnxruntime on the CPU, saying nothing. Raises what onnxruntime does where it does not take the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as it likes
    options.log_severity_level = 4  # fatal errors alone: what it raises is enough
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _compare(
    extract: nn.Module, inputs: CallInputs, dynamic_batch: bool, run: Callable[[CallInputs], Any], path: str
) -> None:
    """Raises `VerificationError` where what a file computes is not what the module does."""
    for case in cases(inputs, dynamic_batch):
        with torch.inference_mode():
            expected = extract(*case.args, **case.kwargs)
            compare(path, case.tensors, tensors_of(expected), tensors_of(run(case)))


def cases(inputs: CallInputs, dynamic_batch: bool) -> tuple[CallInputs, ...]:
    """What a file is compared at: the exported batch size and, where the batch is dynamic, one more."""
    return (inputs, of_batch(inputs, inputs.batch + 1)) if dynamic_batch and inputs.batch else (inputs,)


def compare(path: str, inputs: Sequence[Tensor], expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """`VerificationError` where the results of a file are not those of the module, of which it says that nothing was
    written."""
    if len(expected) != len(found):
        raise VerificationError(
            f"'{path}' was not written: it returns {len(found)} tensors, and the module returns {len(expected)}."
        )
    for one, other in zip(expected, found, strict=True):
        difference = (
            float((one.cpu().double() - other.cpu().double()).abs().max())
            if one.shape == other.shape and one.numel()
            else 0.0
        )
        scale = float(one.detach().double().abs().max()) if one.numel() else 0.0
        if one.shape != other.shape or not difference <= _TOLERANCE * scale:
            raise VerificationError(
                f"'{path}' was not written: at inputs of {[list(tensor.shape) for tensor in inputs]} its result "
                f"differs from that of the module by {difference:.1e}, the largest value being {scale:.1e}."
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, warn and log what is of no use to whoever wants a file; errors are raised all the same."""
    with ONE_AT_A_TIME:
        before = logging.root.manager.disable
        try:
            logging.disable(logging.CRITICAL)
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
