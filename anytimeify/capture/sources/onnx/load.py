"""From a file to a source: read, fold, find layers, free the batch, build the module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources.onnx.batch import agrees, for_any_batch, samples
from anytimeify.capture.sources.onnx.examples import (
    LARGEST,
    Given,
    Shapes,
    constants,
    examples,
    missing_sizes,
    sizes,
)
from anytimeify.capture.sources.onnx.fold import folded
from anytimeify.capture.sources.onnx.graph import Graph, Node, nodes_of
from anytimeify.capture.sources.onnx.layers import roles_of, with_layers
from anytimeify.capture.sources.onnx.network import Network, network_of, row_of
from anytimeify.capture.sources.onnx.read import File, read, with_constants
from anytimeify.capture.sources.onnx.table import Row, rows_by_operator
from anytimeify.capture.sources.onnx.views import tables_of_places, without_tables_of_places
from anytimeify.capture.sources.source import Source, SourceKind, existing_file
from anytimeify.errors import AnytimeError, CaptureError

__all__ = ["KIND"]


def _load(path: str, trust_pickle: bool) -> Source:
    return _source(read(existing_file(path)), {})


def _source(file: File, given: Given) -> Source:
    fixed = constants(file.graph, given)
    importer = _Importer(with_constants(file, fixed))
    rest = {name: value for name, value in given.items() if name not in fixed}
    shapes = sizes(importer.file.graph, rest)
    inputs = None if shapes is None else CallInputs(examples(importer.graph, shapes), {})
    return Source(importer.network(shapes), inputs, file.path.stem, lambda more: _source(file, more))


@dataclass(frozen=True)
class _Importer:
    file: File

    @property
    def path(self) -> str:
        return str(self.file.path)

    def row(self, node: Node) -> Row | None:
        return row_of(node, rows_by_operator(), self.file.opset)

    def known_row(self, node: Node) -> Row:
        row = self.row(node)
        assert row is not None, "graphs are checked before they run"
        return row

    @cached_property
    def graph(self) -> Graph:
        """Folded, with layers. `CaptureError` names all nodes that have no row."""
        graph = folded(self.file.graph, self.row)
        self.check(graph)
        return with_layers(graph, self.path)

    def check(self, graph: Graph) -> None:
        missing, seen = [], set[str]()
        for node in nodes_of(graph):
            row, kind = self.row(node), f"{node.domain}.{node.operator}"
            if row is None and kind not in seen:
                missing.append(str(node) + _why(node.operator))
                seen.add(kind)
            elif row is not None and (unknown := sorted(node.attributes.keys() - row.keywords)):
                missing.append(f"{node} ({', '.join(unknown)})")
        if missing:
            raise CaptureError(
                f"'{self.path}' has operators that are not read: {', '.join(missing)}. docs/onnx.md lists those that "
                f"are, in version {self.file.opset}."
            )

    def build(self, graph: Graph) -> Network:
        return network_of(graph, roles_of(graph, self.known_row), self.known_row, self.path)

    def network(self, shapes: Shapes | None) -> Network:
        """The module; for any batch, where the file is for one and the sizes of its inputs are known."""
        graph = self.graph if shapes is None else self.without_tables(shapes)
        network = self.build(graph)
        network.notes = tuple(_notes(graph))
        first = graph.inputs[0].sizes if graph.inputs else None
        if shapes is None or not first or not isinstance(first[0], int):
            return network
        own = {**shapes, **{one.name: _declared(one.sizes, shapes[one.name]) for one in graph.inputs}}
        if any(math.prod(shape) > max(LARGEST, math.prod(shapes[name])) for name, shape in own.items()):
            raise missing_sizes(graph.inputs, self.path)
        inputs = examples(graph, own)
        general = self.general(graph, network.eval(), inputs)
        network.train()
        if general is None:
            network.batch = first[0]
            return network
        note = f"the file is for batches of {first[0]}; the batch was made dynamic, and another size agrees"
        general.notes = (*network.notes, note)
        return general

    def without_tables(self, shapes: Shapes) -> Graph:
        if not tables_of_places(self.graph):
            return self.graph
        network = self.build(self.graph).eval()
        inputs = examples(self.graph, shapes)
        return without_tables_of_places(self.graph, network, [inputs, samples(inputs, 2 * inputs[0].shape[0])])

    def general(self, graph: Graph, network: Network, inputs: Sequence[Tensor]) -> Network | None:
        """A network for any batch that agrees with one for a batch alone; None where there is none."""
        try:
            with torch.no_grad():
                network(*inputs)
        except AnytimeError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CaptureError(f"'{self.path}' does not run on inputs of the sizes that it says: {first}") from error
        try:
            general = self.build(for_any_batch(graph, network, inputs, self.known_row))
        except Exception:  # whatever goes wrong for another batch: the file's is kept
            return None
        return general.train() if agrees(network, general.eval(), inputs) else None


def _declared(sizes: Sequence[int | str | None] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with the file's own batch."""
    return (sizes[0], *shape[1:]) if sizes and isinstance(sizes[0], int) else shape


def _why(operator: str) -> str:
    quantised = operator.startswith(("QLinear", "Quantize", "Dequantize", "DynamicQuantize")) or operator.endswith(
        "Integer"
    )
    return " (quantised: take the file of floating-point numbers that it was made of)" if quantised else ""


def _notes(graph: Graph) -> list[str]:
    """What a report says of a file: layers that hold a folded norm, as far as one can see."""
    normed = {name for node in graph.nodes if "Normalization" in node.operator for name in node.inputs[:1]}
    folded = [
        node
        for node in graph.nodes
        if node.operator == "Conv" and len(node.inputs) > 2 and node.inputs[2] and node.outputs[0] not in normed
    ]
    if not folded:
        return []
    count = f"{len(folded)} convolutions have" if len(folded) > 1 else "one convolution has"
    return [f"{count} a bias and no norm behind, as where a batch norm was folded in: levels have no norm there"]


def _inputs(model: nn.Module) -> CallInputs | None:
    """For a network whose sizes the file leaves open, the error that asks for them."""
    if isinstance(model, Network):
        raise missing_sizes(model.inputs, model.path)
    return None


def _told(model: nn.Module) -> tuple[str, ...]:
    return model.notes if isinstance(model, Network) else ()


KIND = SourceKind("model.onnx", _load, suffixes=(".onnx",), inputs=_inputs, notes=_told)
