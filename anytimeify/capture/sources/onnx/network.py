"""`Network`: a graph of ONNX as a module that torch runs and exports.

It goes through the nodes in their order. What is known without running (see `values`) is computed beside the network,
so that an export sees operations on tensors alone, with sizes that are numbers or follow the batch. Every node that
computes with tensors is a module of its own, called as in the file: reports and errors name it.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anytimeify._torch import without_dispatch_modes
from anytimeify.capture.sources.onnx.graph import Array, Graph, Input, Node
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import is_symbolic, sizes_of, tensor_of
from anytimeify.errors import CaptureError
from anytimeify.ir import names

__all__ = ["Network", "network_of", "row_of", "run_known", "valid"]


def valid(name: str) -> str:
    """The name of a tensor as torch allows it: letters, digits and lines, with dots between parts."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".")]
    return ".".join(part or "_" for part in parts)


def row_of(node: Node, table: Mapping[str, Sequence[Row]], opset: int) -> Row | None:
    """The newest row of an operator that its version has; None where there is none."""
    rows = () if node.domain else table.get(node.operator, ())
    return next((row for row in rows if row.since <= opset), None)


@dataclass(frozen=True)
class Body:
    """A graph whose nodes are modules."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Step(nn.Module):
    """One node: its row's function, with its attributes."""

    def __init__(self, node: Node, row: Row, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.node, self.row, self.attributes = node, row, attributes

    def options(self) -> dict[str, Any]:
        own = {name: value for name, value in self.attributes.items() if name in self.row.keywords}
        if "training" in self.row.keywords:
            own["training"] = self.training
        if "outputs" in self.row.keywords:
            own["outputs"] = max((place for place, name in enumerate(self.node.outputs, 1) if name), default=0)
        return own

    def forward(self, *inputs: Any) -> Any:
        return self.row.function(*inputs, **self.options())


def run_known(step: Step, inputs: Sequence[Any]) -> Any:
    """What a node makes of what is known; None where that is no longer known."""
    symbolic = any(is_symbolic(one) for one in inputs)
    if symbolic and step.row.sizes is not None:
        return step.row.sizes(*inputs, **step.options())
    if symbolic:
        return None
    with without_dispatch_modes():  # and with gradients as they are: an export would note that they were switched
        found = step.row.function(*given(step.row, inputs, tensor_of), **step.options())
        return tuple(map(_known, found)) if isinstance(found, tuple | list) else _known(found)


def _known(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy() if value.dtype != torch.bfloat16 else value.float().numpy()
    return value if isinstance(value, np.ndarray) else np.array(value)


def given(row: Row, inputs: Sequence[Any], tensor: Callable[[Array], Tensor]) -> list[Any]:
    """Inputs as a row's function takes them: tensors, arrays of numbers, or single numbers."""
    ranks = [one.dim() for one in inputs if isinstance(one, Tensor)]
    found: list[Any] = []
    for place, one in enumerate(inputs):
        numbers = place in row.numbers
        if numbers and isinstance(one, Tensor):
            raise NotReadError(f"its input {place} is a size or an axis, and depends on the values of the inputs")
        if not isinstance(one, np.ndarray) or numbers or place in row.known:
            found.append(one)
        elif row.scalars and one.size == 1 and ranks and one.ndim <= max(ranks):
            found.append(sizes_of(one)[0])
        else:
            found.append(tensor(one))
    return found


class Network(nn.Module):
    """Called as the file's inputs are ordered, or by their names. Returns one tensor, or a dict of the outputs."""

    inputs: tuple[Input, ...]  # their names are valid ones
    body: Body
    notes: tuple[str, ...] = ()  # for the report
    batch: int | None = None  # where the file is right for one size only

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.constants: dict[str, Array] = {}  # what is known
        self.stored: dict[str, str] = {}  # parameters and buffers by the file's names, and their paths here
        self.buffers_of_constants: dict[str, str] = {}  # where a constant is a buffer, too

    def computed(self, tensors: Sequence[Any]) -> Any:
        """The outputs for inputs in their order."""
        if self.batch is not None and tensors[0].shape[0] != self.batch:
            raise CaptureError(
                f"'{self.path}' has a batch of {self.batch} written into it, and no other agrees with it"
            )
        values = self.values(tensors)
        found = [self._tensor(name, values[name]) for name in self.body.outputs]
        return found[0] if len(found) == 1 else dict(zip(_distinct(self.body.outputs), found, strict=True))

    def values(self, tensors: Sequence[Any], *, only_inputs: bool = False) -> dict[str, Any]:
        """All values by name; with `only_inputs` those that are there before the first node runs."""
        values: dict[str, Any] = {name: self._stored(path) for name, path in self.stored.items()}
        values.update(self.constants)
        values.update(zip(self.body.inputs, tensors, strict=True))
        for step in () if only_inputs else self.body.steps:
            self.run_step(step, values)
        return values

    def run_step(self, step: Step, values: dict[str, Any]) -> None:
        """Adds what a node computes."""
        inputs = [values[name] if name else None for name in step.node.inputs]
        try:
            results = self._result(step, inputs, values)
        except NotReadError as error:
            raise CaptureError(f"{step.node} of '{self.path}' is not read: {error}.") from error
        several = results if isinstance(results, tuple | list) else (results,)
        values.update((name, one) for name, one in zip(step.node.outputs, several, strict=False) if name)

    def attributes_of(self, node: Node, other: Node) -> Mapping[str, Any]:
        """Attributes of a node that stands for `node`, with inner graphs as this network has them."""
        own = next(step.attributes for step in self.body.steps if step.node is node)
        return {
            name: own.get(name, value) if isinstance(value, Graph) else value
            for name, value in other.attributes.items()
        }

    def _stored(self, path: str) -> Tensor:
        module, _, last = path.rpartition(".")
        return getattr(self.get_submodule(module), last)  # type: ignore[no-any-return]  # a parameter or a buffer

    def _result(self, step: Step, inputs: Sequence[Any], values: dict[str, Any]) -> Any:
        if step.row.flow:
            return step.row.function(self._runner(values), *inputs, **step.options())
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        if all(one is None or isinstance(one, np.ndarray) for one in inputs):
            found = run_known(step, inputs)
            if found is not None:
                return found
        called = {id(one): name for name, one in zip(step.node.inputs, inputs, strict=False)}
        return step(*given(step.row, inputs, lambda array: self._tensor(called[id(array)], array)))

    def _runner(self, values: dict[str, Any]) -> Callable[[Body, Sequence[Any]], list[Any]]:
        def run(body: Body, own: Sequence[Any]) -> list[Any]:
            inner = {**values, **dict(zip(body.inputs, own, strict=True))}
            for step in body.steps:
                self.run_step(step, inner)
            return [inner[name] for name in body.outputs]

        return run

    def _tensor(self, name: str, value: Any) -> Tensor:
        """A value as a tensor; a constant of the file is a buffer."""
        if isinstance(value, Tensor):
            return value
        path = self.buffers_of_constants.get(name)
        return tensor_of(value) if path is None else self._stored(path)


def _distinct(outputs: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    return [names.fresh(valid(name).replace(".", "_"), taken) for name in outputs]


def network_of(graph: Graph, roles: Mapping[str, str], rows: Callable[[Node], Row], path: str) -> Network:
    """A module with a `forward` of its own, whose signature has the names of the graph's inputs.

    `roles` says what becomes of tensors: "parameter", "buffer"; the others are known values."""

    def forward(self: Network, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.forward).bind(*args, **kwargs)
        return self.computed(list(bound.arguments.values()))

    taken: set[str] = set()
    inputs = [names.fresh(_identifier(one.name), taken) for one in graph.inputs]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *inputs)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # a function's own
    network: Network = type("OnnxNetwork", (Network,), {"forward": forward})(path)
    network.inputs = tuple(Input(name, one.dtype, one.sizes) for name, one in zip(inputs, graph.inputs, strict=True))
    builder = _Builder(network, rows)
    builder.place(graph.tensors, roles)
    network.body = builder.body(graph)
    return network


def _identifier(name: str) -> str:
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    plain = found.isidentifier() and not keyword.iskeyword(found) and found != "self"
    return found if plain else f"x_{found}"


class _Builder:
    def __init__(self, network: Network, rows: Callable[[Node], Row]) -> None:
        self.network, self.rows = network, rows

    def place(self, tensors: Mapping[str, Array], roles: Mapping[str, str]) -> None:
        for name, array in tensors.items():
            role = roles.get(name)
            if role in (None, "constant"):
                self.network.constants[name] = array
            if role is not None:
                tensor = tensor_of(array)
                path = self._place(valid(name), nn.Parameter(tensor) if role == "parameter" else tensor)
                paths = self.network.buffers_of_constants if role == "constant" else self.network.stored
                paths[name] = path

    def body(self, graph: Graph) -> Body:
        steps = tuple(self._step(node) for node in graph.nodes)
        return Body(steps, tuple(one.name for one in graph.inputs), graph.outputs)

    def _step(self, node: Node) -> Step:
        attributes = {
            name: self.body(value) if isinstance(value, Graph) else value for name, value in node.attributes.items()
        }
        step = Step(node, self.rows(node), attributes)
        name = (node.name or next(filter(None, node.outputs), "") or node.operator).replace(".", "_")
        self.network.add_module(_free(self.network, name), step)
        return step

    def _place(self, name: str, tensor: Tensor) -> str:
        """Puts a tensor at its path, in modules that hold nothing else."""
        *path, last = name.split(".")
        module: nn.Module = self.network
        own = []
        for part in path:
            part = part if isinstance(module._modules.get(part), _Folder) else _free(module, part)
            if part not in module._modules:
                module.add_module(part, _Folder())
            module = module.get_submodule(part)
            own.append(part)
        last = _free(module, last)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(last, tensor)
        else:
            module.register_buffer(last, tensor)
        return ".".join((*own, last))


class _Folder(nn.Module):
    """Holds tensors under a path."""


def _free(module: nn.Module, name: str) -> str:
    """A name that no attribute of a module has."""
    candidate, count = name or "_", 1
    while hasattr(module, candidate):
        candidate, count = f"{name}_{count}", count + 1
    return candidate
