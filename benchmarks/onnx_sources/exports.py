"""Files that torch's exporters write: which exporter, which version of the operators, and what it takes."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import torch
from torch import Tensor, nn

from anytimeify.errors import first_line
from benchmarks.onnx_sources.networks import Positional
from benchmarks.onnx_sources.older import to_17

__all__ = ["ATTENTION", "CONVERTED", "EXPORTS", "Export", "NotExportedError", "export"]

ATTENTION = "attention written out"
CONVERTED = "converted from 18"


@dataclass(frozen=True)
class Export:
    """A way to write a file: which of torch's exporters, and the version of the operators."""

    dynamo: bool
    opset: int

    def __str__(self) -> str:
        return f"{'dynamo' if self.dynamo else 'TorchScript'} {self.opset}"


EXPORTS = tuple(Export(dynamo, opset) for dynamo in (False, True) for opset in (11, 17, 18, 20))


class NotExportedError(Exception):
    """There is no file of this version, and who refused it."""


def export(model: nn.Module, inputs: tuple[Tensor, ...], way: Export, file: Path, *, dynamic: bool = True) -> str:
    """Writes a file, with a dynamic batch or that of the inputs. What it took besides the exporter, or nothing."""
    if way.dynamo:
        _dynamo(model, inputs, way, file, dynamic=dynamic)
        return _in_version(way.opset, file)
    written_out = way.opset < 14 and _has_attention(model)
    try:
        _torchscript(_with_attention_written_out(model) if written_out else model, inputs, way, file, dynamic=dynamic)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        raise NotExportedError(f"TorchScript's exporter: {first_line(error)}") from error
    converted = _in_version(way.opset, file)
    return ATTENTION if written_out else converted


def _torchscript(model: nn.Module, inputs: tuple[Tensor, ...], way: Export, file: Path, *, dynamic: bool) -> None:
    options = _options(inputs, way)
    if dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in options["input_names"]}
    with _quiet():
        torch.onnx.export(Positional(model).eval(), inputs, str(file), dynamo=False, **options)


def _dynamo(model: nn.Module, inputs: tuple[Tensor, ...], way: Export, file: Path, *, dynamic: bool) -> None:
    options = _options(inputs, way)
    if dynamic:
        options["dynamic_shapes"] = {"inputs": tuple({0: torch.export.Dim("batch")} for _ in inputs)}
    with _quiet():
        torch.onnx.export(Positional(model).eval(), inputs, str(file), dynamo=True, **options)


def _options(inputs: tuple[Tensor, ...], way: Export) -> dict[str, Any]:
    names = [f"input_{index}" for index in range(len(inputs))]
    return {"input_names": names, "output_names": ["output"], "opset_version": way.opset}


@contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _in_version(opset: int, file: Path) -> str:
    """Converts a file that torch left in version 18, where it can be converted."""
    model = onnx.load(file)
    (standard,) = (one.version for one in model.opset_import if not one.domain)
    if standard == opset:
        return ""
    try:
        converted = to_17(model) if opset == 17 else onnx.version_converter.convert_version(model, opset)
    except RuntimeError as error:
        reason = first_line(error).rpartition("failed: ")[2]
        raise NotExportedError(f"torch writes {standard} instead, and onnx's converter: {reason}") from error
    onnx.save(converted, file)
    return CONVERTED


def _has_attention(model: nn.Module) -> bool:
    """Whether it may call `scaled_dot_product_attention`, which TorchScript's exporter knows from version 14 on."""
    return hasattr(model, "set_attn_implementation") or any(hasattr(one, "fused_attn") for one in model.modules())


def _with_attention_written_out(model: nn.Module) -> nn.Module:
    """A copy that multiplies queries, keys and values itself, as `transformers` and timm can."""
    model = copy.deepcopy(model)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # type: ignore[operator]  # of transformers
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # of timm
    return model
