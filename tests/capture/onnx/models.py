"""Small graphs of ONNX, and their results in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from anytimeify.capture import Source, resolve

__all__ = ["graph", "made", "network", "node", "results", "same_as_onnxruntime", "written"]

Array = np.ndarray[Any, Any]
node = helper.make_node


def made(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    tensors: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; tensors and inputs are of 32 bits, or of the type that an array or `types` has."""
    kinds = types or {}
    own = [numpy_helper.from_array(np.asarray(value), name) for name, value in (tensors or {}).items()]
    given = [
        helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), list(shape))
        for name, shape in inputs.items()
    ]
    made = [helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), None) for name in outputs]
    return helper.make_model(
        helper.make_graph(list(nodes), "graph", given, made, own),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def graph(
    nodes: Sequence[Any], inputs: Mapping[str, int], outputs: Sequence[str], shape: Sequence[str] | None = None
) -> onnx.GraphProto:
    """A graph inside of a node; its inputs with their types, those of floating-point numbers of one `shape`."""
    floating = onnx.TensorProto.FLOAT
    given = [
        helper.make_tensor_value_info(name, kind, shape if kind == floating else []) for name, kind in inputs.items()
    ]
    if shape is None:
        return helper.make_graph(
            list(nodes), "inner", given, [helper.make_empty_tensor_value_info(name) for name in outputs]
        )
    made = [helper.make_tensor_value_info(name, floating, shape) for name in outputs]
    return helper.make_graph(list(nodes), "inner", given, made)


def written(model: onnx.ModelProto, folder: Path, **inputs: Any) -> Source:
    """A model as a file, as a source."""
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return resolve(file, inputs=inputs or None)


def network(source: Source) -> nn.Module:
    assert isinstance(source.model, nn.Module)
    return source.model.eval()


def results(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]


def same_as_onnxruntime(model: onnx.ModelProto, folder: Path, *inputs: Tensor, tolerance: float = 1e-5) -> Source:
    """Compares a model, on the source's own examples or on `inputs`."""
    import onnxruntime

    source = written(model, folder)
    examples = inputs or source.example_inputs.args
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {one.name: tensor.numpy() for one, tensor in zip(model.graph.input, examples, strict=True)}
    with torch.no_grad():
        found = results(network(source)(*examples))
    for one, other in zip(found, session.run(None, feed), strict=True):
        assert tuple(one.shape) == other.shape
        np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=tolerance * max(float(np.abs(other).max()), 1e-3))
    return source
