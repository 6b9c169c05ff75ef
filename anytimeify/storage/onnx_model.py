"""Exported programs as ONNX, under names that stay the same: of inputs, outputs and the batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from anytimeify.errors import CaptureError, first_line
from anytimeify.storage.flat_outputs import flat_outputs

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["onnx_model", "output_names", "save_onnx"]

_BATCH, _OUTPUT = "batch", "output"
_LARGEST = 1 << 30  # bytes; a protobuf cannot hold 2 GiB, so larger models keep their tensors in a file beside it


def onnx_model(
    program: ExportedProgram,
    name: str,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str],
    keep_weights: bool = False,
) -> ir.Model:
    """The program as ONNX; an error calls it `name`. `inputs` and `outputs` are names; a single result is called
    `output`. A batch of any size is the symbol `batch`.

    Norms are merged into layers, and what depends on weights alone is computed, unless `keep_weights`."""
    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=not keep_weights,
        )
        assert written is not None
        model: ir.Model = written.model
        if keep_weights:
            _simplify_around_weights(model)
    except Exception as error:
        raise CaptureError(f"torch.onnx.export cannot write {name}: {first_line(error)}") from error
    if inputs is not None:
        _name(model.graph, model.graph.inputs, inputs)
    _name(model.graph, model.graph.outputs, outputs)
    _name_batch(model)
    _forget_origins(model)
    return model


def output_names(program: ExportedProgram) -> list[str]:
    """Makes a program return a flat tuple of tensors, and gives their names: those of `flat_outputs`, and `output` of a
    single one."""
    names = flat_outputs(program)
    inputs = {node.name for node in program.graph.find_nodes(op="placeholder")}
    return names or [_OUTPUT if _OUTPUT not in inputs else f"{_OUTPUT}_"]


def save_onnx(model: ir.Model, file: Path) -> None:
    """Writes one file; of a model above 1 GiB a second one, `NAME.data`."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, file, external_data=f"{file.name}.data" if size > _LARGEST else None)


def _simplify_around_weights(model: ir.Model) -> None:
    """Folds constants and removes what is not needed, with weights as inputs, whose values nobody knows."""
    from onnxscript import optimizer

    graph = model.graph
    weights = dict(graph.initializers)
    values = {name: value.const_value for name, value in weights.items()}
    for name, value in weights.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(model)
    for name, value in weights.items():
        graph.inputs.remove(value)
        value.const_value = values[name]
        if value.uses() or value in graph.outputs:
            graph.initializers.add(value)


def _forget_origins(model: ir.Model) -> None:
    """Leaves out what torch notes of every node: its class, its modules, its line of code. Nobody who runs the file
    needs it, it says more of the user's program than the user may want to give away, and takes as much room as the
    nodes."""
    from onnx_ir.traversal import RecursiveGraphIterator

    graph = model.graph
    nodes = list(RecursiveGraphIterator(graph))
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    holders: list[Any] = [model, graph, *nodes, *values]
    for one in holders:
        one.metadata_props.clear()
        one.doc_string = None


def _name(graph: ir.Graph, values: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Gives inputs or results their names. What else has one of these, a value inside of the file, gets another."""
    everything = [*graph.initializers.values(), *graph.inputs, *(value for node in graph for value in node.outputs)]
    own, taken = set(map(id, values)), {value.name for value in everything}
    for other in everything:
        if id(other) not in own and other.name in names:
            free = f"{other.name}_value"
            while free in taken or free in names:
                free += "_"
            taken.add(free)
            other.name = free
    for value, name in zip(values, names, strict=True):
        value.name = name


def _name_batch(model: ir.Model) -> None:
    """Calls the one size that inputs leave open `batch`, wherever it stands in shapes."""
    import onnx_ir as ir
    from onnx_ir.traversal import RecursiveGraphIterator

    def symbols(value: ir.Value) -> list[str]:
        return [str(size.value) for size in value.shape or () if isinstance(size, ir.SymbolicDim) and size.value]

    found = {symbol for value in model.graph.inputs for symbol in symbols(value)}
    if len(found) != 1 or not (symbol := found.pop()).isidentifier():
        return
    pattern = re.compile(rf"\b{symbol}\b")

    def named(size: Any) -> Any:
        known = isinstance(size, ir.SymbolicDim) and size.value is not None
        return ir.SymbolicDim(pattern.sub(_BATCH, str(size.value))) if known else size

    nodes = RecursiveGraphIterator(model.graph)
    for value in (*model.graph.inputs, *(output for node in nodes for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([named(size) for size in value.shape])
