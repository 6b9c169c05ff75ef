"""What can be computed before a network runs: constants, branches that constants decide, names of the same value.

    y = Add(Constant(2), Constant(3))           ->      y is a tensor of the graph
    y = If(true, z = Relu(x), ...)              ->      z = Relu(x), and z is read for y
    y = Identity(x)                             ->      x is read for y

Weights are left alone where the network itself reads them too, for a copy would be trained apart. Nodes that nothing
reads go. All tensors are in the outermost graph afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anytimeify.capture.sources.onnx.graph import Array, Graph, Node, nodes_of, readers
from anytimeify.capture.sources.onnx.network import Step, run_known
from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.ir import names

__all__ = ["folded"]

Rows = Callable[[Node], Row | None]


def folded(graph: Graph, rows: Rows) -> Graph:
    """The same graph with less to run. Nodes without a row are left as they are."""
    folder = _Folder(rows, _read_as_they_are(graph, rows))
    tensors: dict[str, Array] = {}
    result = _without_tensors(folder.graph(graph, {}), tensors, set())
    return replace(result, tensors=tensors)


def _without_tensors(graph: Graph, tensors: dict[str, Array], taken: set[str]) -> Graph:
    """A graph and those in it without tensors, which are collected under names that no two have."""
    new = {name: names.fresh(name, taken) for name in graph.tensors}
    graph = _renamed(graph, {name: other for name, other in new.items() if name != other})
    tensors.update(graph.tensors)
    nodes = tuple(
        replace(
            node,
            attributes={
                name: _without_tensors(one, tensors, taken) if isinstance(one, Graph) else one
                for name, one in node.attributes.items()
            },
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes, tensors={})


def _may_fold(node: Node, rows: Rows) -> bool:
    row = rows(node)
    return row is not None and not row.flow and not node.domain and "training" not in row.keywords


def _read_as_they_are(graph: Graph, rows: Rows) -> set[str]:
    """Values that are read by what has other inputs than constants, or returned."""
    constant, found = set[str](_all_tensors(graph)), set(graph.outputs)
    for node in nodes_of(graph):
        if constant.issuperset(filter(None, node.inputs)) and _may_fold(node, rows):
            constant.update(node.outputs)
        else:
            found.update(node.inputs)
    return found


def _all_tensors(graph: Graph) -> Iterator[str]:
    yield from graph.tensors
    for node in graph.nodes:
        for inner in node.graphs:
            yield from _all_tensors(inner)


def _is_weight(array: Array) -> bool:
    return array.dtype.kind == "f" and array.size > 1


@dataclass
class _Folder:
    rows: Rows
    kept: set[str]  # read as they are
    taken: set[str] = field(default_factory=set)

    def graph(self, graph: Graph, around: Mapping[str, Array], same: Mapping[str, str] | None = None) -> Graph:
        """`around`: what is known outside of an inner graph; `same`: by which name a value is read."""
        tensors, known = dict(graph.tensors), {**around, **graph.tensors}
        same = dict(same or {})
        self.taken.update(tensors)
        nodes: list[Node] = []
        waiting = list(graph.nodes)[::-1]
        while waiting:
            node = waiting.pop()
            node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
            self.taken.update(node.outputs)
            if node.operator == "Identity" and not node.domain:
                same[node.outputs[0]] = node.inputs[0]
            elif (branch := self.branch(node, known)) is not None:
                branch = self.apart(branch)
                for name, tensor in branch.tensors.items():
                    tensors[name] = known[name] = tensor
                ends = [
                    Node("Identity", (inner,), (outer,))
                    for inner, outer in zip(branch.outputs, node.outputs, strict=True)
                ]
                waiting += [*ends, *branch.nodes[::-1]]
            elif (found := self.computed(node, known)) is not None:
                for name, array in found.items():
                    tensors[name] = known[name] = array
            else:
                inner = {
                    name: self.graph(value, known, same) if isinstance(value, Graph) else value
                    for name, value in node.attributes.items()
                }
                nodes.append(replace(node, attributes=inner))
        outputs = tuple(same.get(name, name) for name in graph.outputs)
        return _without_unread(replace(graph, nodes=tuple(nodes), tensors=tensors, outputs=outputs))

    def branch(self, node: Node, known: Mapping[str, Array]) -> Graph | None:
        """The branch that a constant chooses."""
        if node.operator != "If" or node.domain or node.inputs[0] not in known:
            return None
        chosen = "then_branch" if known[node.inputs[0]].reshape(-1)[0] else "else_branch"
        found = node.attributes.get(chosen)
        return found if isinstance(found, Graph) else None

    def apart(self, graph: Graph) -> Graph:
        """An inner graph whose names nobody else has."""
        own = [*graph.tensors, *(name for node in graph.nodes for name in node.outputs if name)]
        new = {name: names.fresh(name, self.taken) for name in own}
        return _renamed(graph, new)

    def computed(self, node: Node, known: Mapping[str, Array]) -> dict[str, Array] | None:
        """The outputs, where the inputs are known."""
        row = self.rows(node)
        if row is None or not _may_fold(node, self.rows):
            return None
        given = [known.get(name) for name in node.inputs if name]
        if any(one is None or one.dtype.hasobject for one in given) or (not given and node.operator != "Constant"):
            return None
        if any(_is_weight(known[name]) and name in self.kept for name in node.inputs if name):
            return None
        step = Step(node, row, node.attributes)
        try:
            found = run_known(step, [known[name] if name else None for name in node.inputs])
        except NotReadError:  # said where it runs
            return None
        several = found if isinstance(found, tuple) else (found,)
        if math.prod(several[0].shape) > _LARGEST:
            return None
        return {name: one for name, one in zip(node.outputs, several, strict=False) if name}


_LARGEST = 1 << 26  # elements of a constant


def _renamed(graph: Graph, new: Mapping[str, str]) -> Graph:
    def called(given: Iterable[str]) -> tuple[str, ...]:
        return tuple(new.get(name, name) for name in given)

    def value(one: Any) -> Any:
        return _renamed(one, new) if isinstance(one, Graph) else one

    nodes = tuple(
        replace(
            node,
            inputs=called(node.inputs),
            outputs=called(node.outputs),
            attributes={name: value(one) for name, one in node.attributes.items()},
        )
        for node in graph.nodes
    )
    tensors = {new.get(name, name): tensor for name, tensor in graph.tensors.items()}
    return replace(graph, nodes=nodes, tensors=tensors, outputs=called(graph.outputs))


def _without_unread(graph: Graph) -> Graph:
    """Tensors of an inner graph are kept with what reads them; outer ones may be read from inside."""
    read = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not read.isdisjoint(node.outputs):
            kept.append(node)
            read.update(node.inputs)
            for one in node.graphs:
                read.update(readers(one))
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in read}
    return replace(graph, nodes=tuple(kept[::-1]), tensors=tensors)
