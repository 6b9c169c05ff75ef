"""Levels in one ONNX model that switches between them.

    small.onnx: y = conv(x, v)      ->      y = If(level == 0, then={conv(x, Slice(w, [0], [4], [0]))},
    full.onnx:  y = conv(x, w)                                 else={conv(x, Slice(w, [0], [8], [0]))})

The inputs are the backbone's and one more, `level`, an integer: 0 is the cheapest. The chosen level's branch is all
that runs; a number that no level has is refused by the runtime. The outputs are those of an extract.

Weights stand once, outside of the branches. Every branch takes its part of them, also where that is the whole: runtimes
compute such parts when they load the file, and lay out what stands in a branch as suits them, as they do in a file that
holds this level alone. What stands outside they use as it is (onnxruntime 1.31: a ResNet-50 takes 1.37 times as long).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anytimeify.capture.inputs import CallInputs
from anytimeify.deploy.description import KEY, describe
from anytimeify.deploy.levels import Levels
from anytimeify.deploy.shared_tensors import SHARED, Masked, Part, Pool
from anytimeify.storage.export import onnx_refusals, onnx_session, traced
from anytimeify.storage.onnx_model import onnx_model, output_names, save_onnx

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LEVEL", "switch", "write_onnx"]

LEVEL = "level"


def write_onnx(levels: Levels, file: Path, name: str) -> None:
    """Writes the model and compares every level of it, as onnxruntime runs it, with its extract."""
    inputs, models = levels.inputs, []
    for place, extract in enumerate(levels.extracts):
        inputs, program = traced(extract, levels.inputs, levels.dynamic_batch)
        called = f"level {place} of {name}"
        models.append(onnx_model(program, called, outputs=output_names(program), keep_weights=True))
    save_onnx(switch(models, {KEY: describe(levels)}), file)
    with onnx_refusals():
        session = onnx_session(file)
    names = [entry.name for entry in session.get_inputs()]

    def run(place: int, case: CallInputs) -> Any:
        arrays = [tensor.detach().cpu().numpy() for tensor in case.tensors]
        results = session.run(None, dict(zip(names, [*arrays, np.array(place)], strict=True)))
        return tuple(torch.from_numpy(result) for result in results)

    levels.verify(name, run, inputs)


def switch(levels: Sequence[ir.Model], description: Mapping[str, str]) -> ir.Model:
    """One model of all levels, the cheapest first, with a description in its metadata. Takes the levels apart."""
    import onnx_ir as ir

    graphs = [model.graph for model in levels]
    inputs = [ir.val(value.name, value.dtype, value.shape) for value in graphs[0].inputs]
    names = [str(value.name) for value in graphs[0].outputs]
    level = ir.val(_free(LEVEL, [*(str(value.name) for value in inputs), *names]), ir.DataType.INT64, [])
    known = ir.val("levels", const_value=ir.tensor(np.arange(len(levels)), name="levels"))
    number = ir.node("Gather", [known, level], name="checked_level")  # refuses what no level has
    number.outputs[0].name = "checked_level"
    shared = _Shared([*(str(value.name) for value in inputs), str(level.name), *names])
    branches = [shared.branch(place, graph, inputs) for place, graph in reversed(list(enumerate(graphs)))][::-1]
    kinds = [_common(list(values)) for values in zip(*(graph.outputs for graph in branches), strict=True)]
    rest = branches[-1]
    for place in reversed(range(len(branches) - 1)):
        results = [
            ir.val(f"from_{place}/{name}", kind.dtype, kind.shape) for name, kind in zip(names, kinds, strict=True)
        ]
        wanted = ir.val(f"number_{place}", const_value=ir.tensor(np.array(place), name=f"number_{place}"))
        here = ir.node("Equal", [number.outputs[0], wanted], name=f"is_level_{place}")
        here.outputs[0].name = f"is_level_{place}"
        attributes = {"then_branch": branches[place], "else_branch": rest}
        chosen = ir.node("If", here.outputs, attributes, outputs=results, name=f"choose_level_{place}")
        rest = ir.Graph([], results, nodes=[here, chosen], initializers=[wanted], name=f"from_{place}")
    nodes = list(rest)
    outputs, initialisers = list(rest.outputs), list(rest.initializers.values())
    rest.outputs.clear()
    rest.remove(nodes)
    for value, name in zip(outputs, names, strict=True):
        value.name = name
    for value in initialisers:
        del rest.initializers[str(value.name)]
    versions = {domain: version for model in levels for domain, version in model.opset_imports.items()}
    whole = ir.Graph(
        [*inputs, level],
        outputs,
        nodes=[number, *nodes],
        initializers=[known, *initialisers, *shared.weights.values()],
        name="levels",
        opset_imports=versions,
    )
    return ir.Model(
        whole, ir_version=levels[0].ir_version, metadata_props=dict(description), producer_name="anytimeify"
    )


class _Shared:
    """The weights of all branches so far, and the branches that take their parts of them."""

    def __init__(self, taken: Sequence[str]) -> None:
        self.pool = Pool()
        self.taken = taken  # names that weights cannot have
        self.weights: dict[str, ir.Value] = {}

    def branch(self, place: int, graph: ir.Graph, inputs: Sequence[ir.Value]) -> ir.Graph:
        """The nodes of a level, which read the inputs and weights of the graph around them."""
        import onnx_ir as ir

        for own, value in zip(list(graph.inputs), inputs, strict=True):
            _replace(own, value)
        small: list[ir.Value] = []
        taking: list[ir.Node] = []
        for value in list(graph.initializers.values()):
            del graph.initializers[str(value.name)]
            tensor = value.const_value.numpy()  # type: ignore[union-attr]  # of an initialiser
            part = self._part(place, str(value.name), tensor)
            if part is None:
                small.append(value)
                continue
            taken = _Taking(str(value.name), self.weights[part.source])
            taken.part(part) if isinstance(part, Part) else taken.masked(part, np.zeros((), tensor.dtype))
            taking.extend(taken.nodes)
            small.extend(taken.constants)
            _replace(value, taken.value)
        nodes, outputs = list(graph), list(graph.outputs)
        graph.outputs.clear()
        graph.remove(nodes)
        for output in [value for value in outputs if value.producer() not in nodes]:  # an input or a weight as it is
            copy = ir.node("Identity", [output])
            copy.outputs[0].type, copy.outputs[0].shape = output.type, output.shape
            nodes.append(copy)
            outputs[outputs.index(output)] = copy.outputs[0]
        result = ir.Graph([], outputs, nodes=[*taking, *nodes], initializers=small, name=f"level_{place}")
        _rename(result, f"level_{place}/")
        return result

    def _part(self, place: int, name: str, tensor: Any) -> Part | Masked | None:
        """The tensor as a part of a weight that branches share; it becomes one itself where it is large enough."""
        import onnx_ir as ir

        found = self.pool.find(name, tensor)
        if found is None and tensor.size >= SHARED:
            called = name if name not in (*self.weights, *self.taken) else f"level_{place}/{name}"
            self.pool.add(called, tensor)
            self.weights[called] = ir.val(called, const_value=ir.tensor(tensor, name=called))
            found = self.pool.find(called, tensor)
        return found


class _Taking:
    """The nodes that take one tensor out of a weight, and the constants that they read."""

    def __init__(self, name: str, whole: ir.Value) -> None:
        self.name = name
        self.value = whole
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def part(self, part: Part) -> None:
        """Ranges first, then what is picked one by one."""
        ranges = {dim: places for dim, places in enumerate(part.places) if isinstance(places, slice)}
        starts, ends = ([getattr(places, edge) for places in ranges.values()] for edge in ("start", "stop"))
        operands = [
            self._integers("starts", starts),
            self._integers("ends", ends),
            self._integers("axes", list(ranges)),
        ]
        self._step("Slice", [self.value, *operands])
        for dim, places in enumerate(part.places):
            if not isinstance(places, slice):
                self._step("Gather", [self.value, self._integers(f"places_{dim}", places)], axis=dim)

    def masked(self, part: Masked, zero: Any) -> None:
        """Where the magnitude reaches the threshold, or where a bit is set."""
        whole, nothing = self.value, self._constant("zero", zero)
        if isinstance(part.kept, float):
            self._step("Abs", [whole])
            self._step("GreaterOrEqual", [self.value, self._constant("threshold", zero.dtype.type(part.kept))])
        else:
            self._unpacked(part.kept)
        self._step("Where", [self.value, whole, nothing])

    def _unpacked(self, kept: Any) -> None:
        """Bits, eight in a byte, the first one the lowest."""
        self._step("Cast", [self._constant("bits", np.packbits(kept.reshape(-1), bitorder="little")[:, None])], to=6)
        self._step("Div", [self.value, self._constant("powers", 2 ** np.arange(8, dtype=np.int32))])
        self._step("Mod", [self.value, self._constant("two", np.array(2, np.int32))])
        self._step("Reshape", [self.value, self._integers("flat", [-1])])
        ends = [self._integers(what, [number]) for what, number in (("first", 0), ("count", kept.size), ("axis", 0))]
        self._step("Slice", [self.value, *ends])
        self._step("Reshape", [self.value, self._integers("shape", kept.shape)])
        self._step("Cast", [self.value], to=9)

    def _step(self, kind: str, operands: Sequence[ir.Value], **attributes: int) -> None:
        import onnx_ir as ir

        called = f"{self.name}/{len(self.nodes)}"
        self.nodes.append(ir.node(kind, operands, attributes, name=called))
        self.value = self.nodes[-1].outputs[0]
        self.value.name = called

    def _integers(self, what: str, numbers: Any) -> ir.Value:
        return self._constant(what, np.array(numbers, np.int64))

    def _constant(self, what: str, value: Any) -> ir.Value:
        import onnx_ir as ir

        called = f"{self.name}/{what}"
        self.constants.append(ir.val(called, const_value=ir.tensor(value, name=called)))
        return self.constants[-1]


def _replace(value: ir.Value, other: ir.Value) -> None:
    value.replace_all_uses_with(other, replace_graph_outputs=True)


def _rename(graph: ir.Graph, prefix: str) -> None:
    """Names are unique in a file, whatever graph they stand in."""
    from onnx_ir.traversal import RecursiveGraphIterator

    for node in RecursiveGraphIterator(graph):
        node.name = prefix + (node.name or node.op_type)
        for value in node.outputs:
            value.name = prefix + str(value.name) if value.name else None
    for value in list(graph.initializers.values()):
        value.name = prefix + str(value.name)


def _common(values: Sequence[ir.Value]) -> ir.Value:
    """The type of a result that is one of several, in the branches."""
    import onnx_ir as ir

    shapes = [value.shape for value in values if value.shape is not None]
    if len(shapes) < len(values) or len({len(shape) for shape in shapes}) > 1:
        return ir.val("result", values[0].dtype)
    sizes = [dims[0] if len(set(dims)) == 1 else None for dims in zip(*shapes, strict=True)]
    return ir.val("result", values[0].dtype, ir.Shape(sizes))


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
