"""How many elements masks keep: `meta["mask_nonzeros"]`, from which costs are counted.

    w' = mul(w, mask)  # nonzeros: 12       ->      w' = mul(w, mask)  # nonzeros: 6

A masked weight is `mul(weight, mask)`, the mask a buffer of the model below `anytime`. Masks change, when they are
estimated anew or loaded; a graph says how many elements they kept when it was made. `recount` makes it say how many
they keep now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Program, TensorType, names
from anytimeify.ir.node_meta import is_masked, is_through, type_of

__all__ = ["Mask", "masks", "recount"]


_MASK = re.compile(r"anytime\.\d+\.masks_*\.")


@dataclass(frozen=True)
class Mask:
    """A mask that a model holds: the buffer's name, the level that it belongs to, the parameter that it masks."""

    name: str
    level: int
    weight: str


def masks(program: Program) -> Iterator[Mask]:
    """The masks that a program reads: buffers `anytime.<level>.masks.<weight>`."""
    for node in program.graph.nodes:
        if _is_masked(program, node):
            name = str(node.args[1].target)
            yield Mask(name, *names.of_mask(name))


def _is_masked(program: Program, node: fx.Node) -> bool:
    """Whether a node multiplies something with a mask that is part of the model's state."""
    mask = node.args[1] if is_masked(node) and len(node.args) > 1 else None
    if not isinstance(mask, fx.Node) or mask.op != "get_attr" or str(mask.target) in program.transient:
        return False
    return _MASK.match(str(mask.target)) is not None


@rewrite("recount")
def recount(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    """The same program, with `meta["mask_nonzeros"]` as the masks among `tensors` are."""
    if not any(_is_masked(program, node) for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    found: dict[fx.Node, Any] = {}  # the mask of a weight, or of a part of it
    for node in program.graph.nodes:
        copies[node] = copy_node(graph, node, copies.__getitem__)
        if _is_masked(program, node):
            found[node] = tensors[str(node.args[1].target)]
        elif node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found.update(_of_result(node, found, tensors))
        if isinstance(found.get(node), Tensor) and isinstance(type_of(node), TensorType):
            copies[node].meta["mask_nonzeros"] = int(found[node].count_nonzero())
    return replace(program, graph=graph)


def _of_result(node: fx.Node, found: Mapping[fx.Node, Any], tensors: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
    """What is kept of a result of masked weights: nothing is said where it is made of inputs of the model too."""
    if is_through(node):  # a masked weight with the gradient of the whole
        return {node: next(found[source] for source in node.all_input_nodes if source in found)}
    if not all(source in found or source.op == "get_attr" for source in node.all_input_nodes):
        return {}
    values = {
        source: found[source] if source in found else tensors[str(source.target)] for source in node.all_input_nodes
    }
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return {node: node.target(*args, **kwargs)}  # type: ignore[operator]  # a call
