"""A batch that is written into a file is made the batch of the input, where another size then agrees with the file.

    Reshape(x, [1, 8, 64])                      ->      ReshapeBatch(x, input), [n, 8, 64]
    Concat(token, x), token of one sample       ->      Concat(ExpandBatch(token, input), x)

The graph runs for the file's batch and for another one side by side. Where a tensor has other sizes in the second run
than in the first, that axis holds the batch: the numbers that a node was given for it are replaced. The result has to
compute, sample by sample, what the file computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Graph, Node
from anytimeify.capture.sources.onnx.network import Network, Step
from anytimeify.capture.sources.onnx.table import Row

__all__ = ["agrees", "for_any_batch"]


def for_any_batch(graph: Graph, network: Network, inputs: Sequence[Tensor], rows: Callable[[Node], Row]) -> Graph:
    """The graph with its nodes rewritten; it may be wrong, see `agrees`."""
    batch = inputs[0].shape[0]
    with torch.no_grad():
        before = network.values(inputs)
        values: dict[str, Any] = network.values(_samples(inputs, 3 * batch), only_inputs=True)
        nodes: list[Node] = []
        for node in graph.nodes:
            for one in _rewritten(node, before, values, graph.inputs[0].name, batch):
                nodes.append(one)
                network.run_step(Step(one, rows(one), network.attributes_of(node, one)), values)
    return replace(graph, nodes=tuple(nodes))


def _samples(inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """The same inputs as a larger batch."""
    batch = inputs[0].shape[0]
    places = torch.arange(count) % batch
    return [one[places] if one.dim() and one.shape[0] == batch else one for one in inputs]


def _shape(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))


def _rewritten(node: Node, before: dict[str, Any], values: dict[str, Any], first: str, batch: int) -> list[Node]:
    def axis_of(name: str) -> int | None:
        """The axis that holds the batch."""
        one, two = _shape(before.get(name)), _shape(values.get(name))
        changed = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        return changed[0] if len(one) == len(two) and len(changed) == 1 else None

    if node.operator in ("Reshape", "Expand") and not node.domain:
        axis, target = axis_of(node.inputs[0]), before.get(node.inputs[1])
        now = values.get(node.inputs[1])
        if axis is None or not isinstance(target, np.ndarray) or not np.array_equal(target, now):
            return [node]
        sizes = list(_shape(before.get(node.outputs[0])))
        if node.operator == "Reshape":
            place = _place(_shape(before[node.inputs[0]]), axis, sizes)
            if place is None or target.reshape(-1)[place] == 0:
                return [node]
            target = [int(size) for size in sizes]
            return [_own(node, "ReshapeBatch", (node.inputs[0], first), target=target, axis=place, of=batch)]
        place = axis + len(sizes) - len(_shape(before[node.inputs[0]]))
        target = [-1 if at == place else int(size) for at, size in enumerate(sizes)]
        return [_own(node, "ExpandTo", (node.inputs[0],), target=target)]
    if node.operator == "Concat" and not node.domain:
        axes = {axis_of(name) for name in node.inputs} - {None}
        if len(axes) != 1:
            return [node]
        return _for_each_sample(node, range(len(node.inputs)), axes.pop() or 0, before, axis_of, first, batch)
    if node.operator in ("Recurrent", "GruResetFirst"):
        axis = 0 if node.attributes["layout"] else 1
        states = [place for place in (2, 3) if node.operator == "Recurrent" or place == 2]
        return _for_each_sample(node, states, axis, before, axis_of, first, batch)
    return [node]


def _own(node: Node, operator: str, inputs: tuple[str, ...], **attributes: Any) -> Node:
    return replace(node, operator=operator, inputs=inputs, attributes=attributes)


def _for_each_sample(
    node: Node,
    places: Sequence[int],
    axis: int,
    before: dict[str, Any],
    axis_of: Callable[[str], int | None],
    first: str,
    batch: int,
) -> list[Node]:
    """Inputs that are there for the file's batch, and not for another, are those of one sample for all of them."""
    found, inputs = [], list(node.inputs)
    for place in places:
        name = inputs[place]
        shape = _shape(before.get(name)) if name else []
        if axis_of(name) is None and axis < len(shape) and shape[axis] == batch:
            inputs[place] = f"{name} of {node.outputs[0]}"
            found.append(Node("ExpandBatch", (name, first), (inputs[place],), {"axis": axis}, f"{node.name}_expand"))
    return [*found, replace(node, inputs=tuple(inputs))]


def _place(before: list[int], axis: int, after: list[int]) -> int | None:
    """The axis of a reshaped tensor that holds the batch: the one with as much before it."""
    ahead, size = math.prod(before[:axis]), before[axis]
    candidates = [
        place for place in range(len(after)) if math.prod(after[:place]) == ahead and after[place] % size == 0
    ]
    exact = [place for place in candidates if after[place] == size]
    return (exact or candidates or [None])[0]


def agrees(network: Network, other: Network, inputs: Sequence[Tensor]) -> bool:
    """Whether `other`, for a larger batch of other samples, gives what `network` gives for each of them alone."""
    batch = inputs[0].shape[0]
    count = 2 * batch + 1
    generator = torch.Generator().manual_seed(1)
    many = [
        one + 0.1 * torch.randn(one.shape, generator=generator).to(one.dtype) if one.is_floating_point() else one
        for one in _samples(inputs, count)
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
