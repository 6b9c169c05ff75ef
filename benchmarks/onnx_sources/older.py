"""From version 18 of the operators to 17: the nodes that are written otherwise there.

    ReduceMean(x, axes, noop_with_empty_axes=0)     ->      ReduceMean(x, axes=...)
    Split(x, num_outputs=2)                         ->      Split(x, sizes)

torch's exporter leaves its file in version 18 where onnx's converter refuses, which it does for each of these, and for
every Pad, which is the same in both where it has no axes. onnx's checker says whether all is of version 17 then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
from onnx import ModelProto, NodeProto, helper, numpy_helper

__all__ = ["to_17"]

_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
)


def to_17(model: ModelProto) -> ModelProto:
    """A new model. `onnx.checker.ValidationError` where a node is not one of version 17 then."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    sizes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in graph.value_info}
    for node in graph.node:
        if node.op_type in _REDUCTIONS:
            _reduction(node, known)
        elif node.op_type == "Split":
            graph.initializer.extend(_split(node, sizes))
    del graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 17))
    onnx.checker.check_model(model, full_check=True)
    return model


def _without(node: NodeProto, name: str) -> Any:
    """Takes an attribute away and gives its value, None where there is none."""
    for place, one in enumerate(node.attribute):
        if one.name == name:
            value = helper.get_attribute_value(one)
            del node.attribute[place]
            return value
    return None


def _reduction(node: NodeProto, known: dict[str, Any]) -> None:
    _without(node, "noop_with_empty_axes")
    if len(node.input) > 1:
        axes = np.asarray(known[node.input[1]])
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes.tolist()))


def _split(node: NodeProto, sizes: dict[str, list[int]]) -> list[onnx.TensorProto]:
    """Parts of sizes that are known; the tensor that says them."""
    if _without(node, "num_outputs") is None:
        return []
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    parts = np.array([sizes[name][axis] for name in node.output])
    name = f"{node.output[0]}_sizes"
    node.input.append(name)
    return [numpy_helper.from_array(parts, name)]
