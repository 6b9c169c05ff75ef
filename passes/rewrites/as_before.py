"""`as_before`: everything that reads a buffer reads its value from before the forward pass wrote to it.

    new = update_buffer(b, v)       ->      old = buffer_before(b)
    y = sub(x, b)                           new = update_buffer(b, v)
                                            y = sub(x, old)

A buffer whose old value only its own update reads is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import reachable
from anytimeify.ir import Program
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.operators.modes import BUFFER_BEFORE
from anytimeify.passes.rewrites.project import project
from anytimeify.rules import has_kind, traits

__all__ = ["as_before"]


@rewrite("as before")
def as_before(program: Program) -> Program:
    """A new program in which results that depend on what a buffer was before the forward pass read a copy of it.

    The order of operations says nothing about memory: a read may come after the write, and what was read may be needed
    again in the backward pass. A buffer of which only its own next value is computed needs no copy. A program that
    needs none is returned as it is.
    """
    written = _written(program)
    copied = {
        name for name, updates in written.items() if not _reached(program, updates).isdisjoint(_reads(program, name))
    }
    if not copied:
        return program
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    memory: dict[fx.Node, fx.Node] = {}  # what is written to: the buffers themselves, and views of them
    views = {view for name in copied for update in written[name] for view in _views(update)}
    for node in (*program.placeholders, *program.graph.find_nodes(op="get_attr")):
        values[node] = copy_node(graph, node)
    for node in program.graph.find_nodes(op="get_attr"):
        if node.target in copied:
            memory[node] = values[node]
            values[node] = graph.call_function(BUFFER_BEFORE, (memory[node],))
            values[node].meta = {**written[str(node.target)][0].meta, "type": type_of(node)}
    for node in program.graph.nodes:
        if node.op not in ("call_function", "output"):
            continue
        values[node] = copy_node(graph, node, values.__getitem__)
        if node in views:
            memory[node] = copy_node(graph, node, lambda one: memory.get(one, values[one]))
        elif (buffer := _buffer(node)) in memory:
            values[node].replace_input_with(values[buffer], memory[buffer])
    whole = replace(program, graph=graph)
    return project(whole, range(len(whole.outputs)), keep_tensors=True)


def _written(program: Program) -> dict[str, list[fx.Node]]:
    """The updates that write, by the buffer."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if _buffer(node) is not None and bound(node)["write"]:
            *_, reader = _views(node)
            found.setdefault(str(reader.target), []).append(node)
    return found


def _views(update: fx.Node) -> Iterator[fx.Node]:
    """What an update writes to, and what that is a view of; the buffer last."""
    node = _buffer(update)
    assert node is not None
    yield node
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
        yield node


def _reads(program: Program, name: str) -> set[fx.Node]:
    """What reads a buffer, or a view of it that is written to, in training."""
    own = {node for node in program.graph.find_nodes(op="get_attr") if node.target == name}
    views = {view for update in _written(program).get(name, []) for view in _views(update)}
    return {user for node in own | views for user in node.users if user not in views and node in _operands(user)}


def _reached(program: Program, updates: list[fx.Node]) -> set[fx.Node]:
    """What results depend on in training otherwise than by these updates."""
    return set(reachable([program.graph.output_node()], _operands, stop=updates.__contains__))


def _operands(node: fx.Node) -> list[fx.Node]:
    """What the value of a node in training is computed from."""
    if not has_kind(node, "choice"):
        return node.all_input_nodes
    return [one for name, one in bound(node).items() if isinstance(one, fx.Node) and name != traits(node).evaluation]


def _buffer(node: fx.Node) -> fx.Node | None:
    """What a node writes to in training: a buffer, or a view of one."""
    name = traits(node).writes
    return bound(node)[name] if name is not None else None
