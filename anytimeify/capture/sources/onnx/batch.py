"""A batch that is written into a file is made the batch of the input, where another size then agrees with the file.

    Reshape(x, [1, 8, 64])                      ->      ReshapeBatch(x, input), [n, 8, 64]
    Concat(token, x), token of one sample       ->      Concat(ExpandBatch(token, input), x)

The graph runs for the file's batch and for another one side by side. Where a tensor has other sizes in the second run
than in the first, that axis holds the batch: the numbers that a node was given for it are replaced. The result has to
compute, sample by sample, what the file computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array, Graph, Node
from anytimeify.capture.sources.onnx.network import Network, Step
from anytimeify.capture.sources.onnx.table import Row

__all__ = ["agrees", "for_any_batch", "samples"]


def for_any_batch(graph: Graph, network: Network, inputs: Sequence[Tensor], rows: Callable[[Node], Row]) -> Graph:
    """The graph with its nodes rewritten; it may be wrong, see `agrees`."""
    batch = inputs[0].shape[0]
    with torch.no_grad():
        before = network.values(inputs)
        now = network.values(samples(inputs, 3 * batch), only_inputs=True)
        both = _SideBySide(before, now, graph.inputs[0].name, batch)
        nodes: list[Node] = []
        for node in graph.nodes:
            for one in both.rewritten(node):
                nodes.append(one)
                network.run_step(Step(one, rows(one), network.attributes_of(node, one)), now)
    return replace(graph, nodes=tuple(nodes))


def samples(inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """The same inputs as a larger batch."""
    batch = inputs[0].shape[0]
    places = torch.arange(count) % batch
    return [one[places] if one.dim() and one.shape[0] == batch else one for one in inputs]


def _shape(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))


@dataclass(frozen=True)
class _SideBySide:
    """Values of the file's batch, and those of a larger one as far as it ran."""

    before: Mapping[str, Any]
    now: Mapping[str, Any]
    first: str  # the input that has the batch
    batch: int

    def axis_of(self, name: str) -> int | None:
        """The axis of a value that holds the batch."""
        one, two = _shape(self.before.get(name)), _shape(self.now.get(name))
        changed = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        return changed[0] if len(one) == len(two) and len(changed) == 1 else None

    def rewritten(self, node: Node) -> list[Node]:
        """What takes the place of a node."""
        if node.operator in ("Recurrent", "GruResetFirst"):
            states = (2, 3) if node.operator == "Recurrent" else (2,)
            return self.for_each_sample(node, states, 0 if node.attributes["layout"] else 1)
        if node.domain or node.operator not in ("Reshape", "Expand", "Concat"):
            return [node]
        if node.operator == "Concat":
            axes = {axis for name in node.inputs if (axis := self.axis_of(name)) is not None}
            return self.for_each_sample(node, range(len(node.inputs)), axes.pop()) if len(axes) == 1 else [node]
        axis, target = self.axis_of(node.inputs[0]), self.before.get(node.inputs[1])
        if axis is None or not isinstance(target, np.ndarray):
            return [node]
        if not np.array_equal(target, np.asarray(self.now.get(node.inputs[1]))):  # it follows the batch already
            return [node]
        return [(self.reshape if node.operator == "Reshape" else self.expand)(node, axis, target)]

    def reshape(self, node: Node, axis: int, target: Array) -> Node:
        own, sizes = _shape(self.before[node.inputs[0]]), _shape(self.before[node.outputs[0]])
        place = _place(own, axis, sizes, self.batch)
        if place is None or target[place] == 0:
            return node
        attributes = {"target": sizes, "axis": place, "of": self.batch}
        return replace(node, operator="ReshapeBatch", inputs=(node.inputs[0], self.first), attributes=attributes)

    def expand(self, node: Node, axis: int, target: Array) -> Node:
        sizes = _shape(self.before[node.outputs[0]])
        sizes[axis + len(sizes) - len(_shape(self.before[node.inputs[0]]))] = -1
        return replace(node, operator="ExpandTo", inputs=node.inputs[:1], attributes={"target": sizes})

    def for_each_sample(self, node: Node, places: Sequence[int], axis: int) -> list[Node]:
        """Inputs at `places` that are there for the file's batch, and not for another, are those of one sample for all
        of them."""
        found, inputs = [], list(node.inputs)
        for place in places:
            name = inputs[place]
            shape = _shape(self.before.get(name)) if name else []
            if self.axis_of(name) is None and axis < len(shape) and shape[axis] == self.batch:
                inputs[place] = f"{name} of {node.outputs[0]}"
                own = Node("ExpandBatch", (name, self.first), (inputs[place],), {"axis": axis}, f"{node.name}_expand")
                found.append(own)
        return [*found, replace(node, inputs=tuple(inputs))]


def _place(before: list[int], axis: int, after: list[int], batch: int) -> int | None:
    """The axis of a reshaped tensor that holds the batch, alone or times something: the one with as much before it."""
    ahead, size = math.prod(before[:axis]), before[axis]
    candidates = [at for at in range(len(after)) if math.prod(after[:at]) == ahead and after[at] % batch == 0]
    exact = [at for at in candidates if after[at] == size]
    return next(iter((*exact, *candidates)), None)


def agrees(network: Network, other: Network, inputs: Sequence[Tensor]) -> bool:
    """Whether `other`, for a larger batch of other samples, gives what `network` gives for each of them alone."""
    batch = inputs[0].shape[0]
    count = 2 * batch + 1
    generator = torch.Generator().manual_seed(1)
    many = [
        one + 0.1 * torch.randn(one.shape, generator=generator).to(one.dtype) if one.is_floating_point() else one
        for one in samples(inputs, count)
    ]
    try:
        with torch.no_grad():
            found = _listed(other(*many))
            for place in range(count):
                each = [
                    one[place : place + 1].expand(batch, *one.shape[1:]) if one.dim() and one.shape[0] == count else one
                    for one in many
                ]
                for one, whole in zip(_listed(network(*each)), found, strict=True):
                    torch.testing.assert_close(whole[place], one[0], rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    except Exception:  # whatever goes wrong for another batch: the file's is kept
        return False
    return True


def _listed(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]
