"""`project`: keep some outputs of a program and the nodes that they need.

    return low, full        ->      return low

The nodes that stay keep their names and order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program

__all__ = ["project"]


@rewrite("project")
def project(program: Program, keep: Sequence[int], *, keep_tensors: bool = False) -> Program:
    """A new program with the chosen outputs, in the chosen order, and nothing that they do not need.

    1. Nodes that no kept output depends on are left out; the others keep names, order and meta.
    2. Placeholders all stay: the program is called as before.
    3. Tensors that are no longer read are dropped from `tensors`, unless `keep_tensors` is set.

    Positions may be negative. A position that the program does not have is a mistake of the caller.
    """
    outputs = program.outputs
    chosen = tuple(outputs[position] for position in keep)
    needed = ancestors(chosen)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = copy_node(graph, node, copies.__getitem__)
    output = graph.output(tuple(copies[node] for node in chosen))
    output.meta = dict(program.graph.output_node().meta)
    if keep_tensors:
        return Program(graph, program.tensors, program.transient)
    read = {node.target for node in graph.find_nodes(op="get_attr")}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in read}
    return Program(graph, tensors, program.transient & tensors.keys())
