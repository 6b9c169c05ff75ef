"""`one_writer`: only the level that equals the backbone writes to a buffer that levels share.

    low = update_buffer(slice(b, 0, 0, 3), v)       ->      low = update_buffer(slice(b, 0, 0, 3), v, False)

The other levels go on with the value that they would have written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import ancestors
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.ir.schema import bound, rebind
from anytimeify.operators.modes import UPDATE_BUFFER
from anytimeify.rules import traits

__all__ = ["one_writer"]


@rewrite("one writer")
def one_writer(rewritten: Rewritten) -> Rewritten:
    """Levels that share a buffer each compute what training would write to it, from channels of their own. Where the
    level that equals the backbone is among them, the others go on with their value, and do not write it."""
    program = rewritten.program
    updates = [node for node in program.graph.nodes if traits(node).writes is not None]
    if not updates:
        return rewritten
    full = ancestors([rewritten.outputs[output] for output in _of_backbones(rewritten)])
    owned = {_buffer(node) for node in updates if node in full}
    silent = {node for node in updates if node not in full and _buffer(node) in owned}
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        values[node] = copy_node(graph, node, values.__getitem__)
        if node in silent:
            values[node].args, values[node].kwargs = rebind(UPDATE_BUFFER, {**bound(values[node]), "write": False})
    return replace(rewritten, program=replace(program, graph=graph))


def _of_backbones(rewritten: Rewritten) -> Iterable[Output]:
    """The outputs that are a backbone's own results: in the joint graph, and alone."""
    for level in rewritten.backbones:
        finest = next(iter(rewritten.granularities("level", level)), None)
        for leaf in (None,) if rewritten.results is None else range(len(rewritten.results.names)):
            yield Output("level", level, finest, leaf)
            yield rewritten.form("alone", level, leaf=leaf)


def _buffer(update: fx.Node) -> str:
    """The tensor that an update writes to, or to a part of."""
    node = bound(update)["buffer"]
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)
