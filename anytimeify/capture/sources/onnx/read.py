"""From a file to a `Graph`. What a file says is compared with its own size before anything is made of it; names are
only ever names, and tensors that lie in files beside it lie in its folder."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from anytimeify.capture.sources.onnx.graph import Array, Graph, Input, Node
from anytimeify.errors import ArtifactError, CaptureError, MissingExtraError

__all__ = ["OPSETS", "File", "read"]

OPSETS = range(11, 21)  # versions of the standard operators for which the rows are right
_LARGEST = 1 << 31  # bytes: what a protobuf can hold
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class File:
    """A graph, and the version of the standard operators that it is written in."""

    graph: Graph
    opset: int
    path: Path


def read(path: Path) -> File:
    """`ArtifactError` where a file is damaged or would read others, `CaptureError` where its version is not known."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", f"The source '{path}'") from error
    if path.stat().st_size > _LARGEST:
        raise ArtifactError(f"'{path}' is larger than 2 GiB, which no ONNX file is.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # of protobuf's, which has several
        raise ArtifactError(f"'{path}' is damaged or no ONNX file. Export it again, or copy it again.") from error
    if not model.graph.node and not model.graph.output:
        raise ArtifactError(f"'{path}' is damaged or no ONNX file: it holds no graph.")
    opset = max((one.version for one in model.opset_import if one.domain in _STANDARD), default=1)
    if opset not in OPSETS:
        raise CaptureError(
            f"'{path}' is written in version {opset} of ONNX's operators; {OPSETS[0]} to {OPSETS[-1]} are read. Export "
            f"it again with opset_version={OPSETS[-1]}, or convert it with onnx.version_converter."
        )
    if model.functions:
        model = _inlined(model, path)
    graph = _Reader(path).graph(model.graph)
    _check_order(graph, set(), path)
    return File(graph, opset, path)


def _check_order(graph: Graph, known: set[str], path: Path) -> None:
    """`ArtifactError` where a node reads what no node before it writes."""
    known = {*known, *graph.tensors, *(one.name for one in graph.inputs)}
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in known:
                raise ArtifactError(f"'{path}' is damaged: {node} reads '{name}', which nothing before it writes.")
        for inner in node.graphs:
            _check_order(inner, known, path)
        known.update(node.outputs)
    for name in graph.outputs:
        if name not in known:
            raise ArtifactError(f"'{path}' is damaged: nothing writes '{name}', which it returns.")


def _inlined(model: Any, path: Path) -> Any:
    """The model with calls of its own functions replaced by what they do; those that call themselves are refused."""
    import onnx.inliner

    own = {(one.domain, one.name) for one in model.functions}
    calls = {
        (one.domain, one.name): {(n.domain, n.op_type) for n in one.node if (n.domain, n.op_type) in own}
        for one in model.functions
    }
    try:
        tuple(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        raise ArtifactError(f"'{path}' holds functions that call themselves.") from error
    return onnx.inliner.inline_local_functions(model)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def graph(self, proto: Any) -> Graph:
        tensors = {tensor.name: self.tensor(tensor) for tensor in proto.initializer}
        if proto.sparse_initializer:
            raise ArtifactError(f"'{self.path}' holds sparse tensors, which are not read. Export it with dense ones.")
        inputs = tuple(self.input(one) for one in proto.input if one.name not in tensors)
        nodes = tuple(self.node(one) for one in proto.node)
        written = [*tensors, *(one.name for one in inputs), *(name for node in nodes for name in node.outputs if name)]
        if len(set(written)) != len(written):
            raise ArtifactError(f"'{self.path}' is damaged: a value is written twice.")
        return Graph(nodes, tensors, inputs, tuple(one.name for one in proto.output))

    def input(self, proto: Any) -> Input:
        kind = proto.type.tensor_type
        if not proto.type.HasField("tensor_type"):
            return Input(proto.name, np.dtype(object), None)
        if not kind.HasField("shape"):
            return Input(proto.name, self.dtype(kind.elem_type), None)
        sizes = tuple(
            one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else (one.dim_param or None)
            for one in kind.shape.dim
        )
        return Input(proto.name, self.dtype(kind.elem_type), sizes)

    def dtype(self, number: int) -> np.dtype[Any]:
        import onnx.helper

        try:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"'{self.path}' holds tensors of an unknown type ({number}).") from error

    def node(self, proto: Any) -> Node:
        attributes = {one.name: self.attribute(one) for one in proto.attribute}
        domain = "" if proto.domain in _STANDARD else proto.domain
        return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name, domain)

    def attribute(self, proto: Any) -> Any:
        import onnx

        kinds = onnx.AttributeProto
        if proto.ref_attr_name:
            raise ArtifactError(f"'{self.path}' is damaged: an attribute refers to one of a function.")
        if proto.type == kinds.GRAPH:
            return self.graph(proto.g)
        if proto.type == kinds.TENSOR:
            return self.tensor(proto.t)
        value = onnx.helper.get_attribute_value(proto)
        if proto.type == kinds.STRING:
            return value.decode()
        if proto.type == kinds.STRINGS:
            return [one.decode() for one in value]
        if proto.type in (kinds.INT, kinds.FLOAT):
            return value
        if proto.type in (kinds.INTS, kinds.FLOATS):
            return list(value)
        raise ArtifactError(f"'{self.path}' has the attribute '{proto.name}' of a kind that is not read.")

    def tensor(self, proto: Any) -> Array:
        import onnx.numpy_helper

        where = f"'{self.path}': tensor '{proto.name}'"
        dtype = self.dtype(proto.data_type)
        if dtype.hasobject or dtype.kind not in "biufcV":
            raise ArtifactError(f"{where} holds {dtype.name}, which is not read.")
        if any(size < 0 for size in proto.dims):
            raise ArtifactError(f"{where} has a negative size.")
        if proto.data_location == proto.EXTERNAL:
            return self.external(proto, dtype, where)
        try:
            return np.array(onnx.numpy_helper.to_array(proto))
        except Exception as error:
            raise ArtifactError(f"{where} does not have as many elements as its sizes say.") from error

    def external(self, proto: Any, dtype: np.dtype[Any], where: str) -> Array:
        """A tensor in a file beside this one: in the same folder or below, not through a link out of it."""
        entries: Mapping[str, str] = {one.key: one.value for one in proto.external_data}
        place = PurePosixPath(entries.get("location", ""))
        folder = self.path.parent.resolve()
        file = (folder / place).resolve()
        if not place.parts or place.is_absolute() or ".." in place.parts or not file.is_relative_to(folder):
            raise ArtifactError(f"{where} lies in '{place}', outside of the folder of the file; it is not read.")
        if not file.is_file():
            raise ArtifactError(f"{where} lies in '{place}', which is not beside the file.")
        count = math.prod(proto.dims)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", count * dtype.itemsize))
        except ValueError as error:
            raise ArtifactError(f"{where} has a place that is no number.") from error
        if offset < 0 or length != count * dtype.itemsize or offset + length > file.stat().st_size:
            raise ArtifactError(f"{where} does not fit into '{place}'.")
        return np.fromfile(file, dtype, count, offset=offset).reshape(tuple(proto.dims))


def with_constants(file: File, values: Mapping[str, Array]) -> File:
    """The file with inputs that are constants from now on."""
    graph = file.graph
    inputs = tuple(one for one in graph.inputs if one.name not in values)
    return replace(file, graph=replace(graph, tensors={**graph.tensors, **values}, inputs=inputs))
