"""Recomputation: parts of a graph that keep no intermediate results, and are run again in the backward pass.

A backbone that runs a part of itself under `torch.utils.checkpoint` has the number of that part at its nodes,
`node.meta["checkpoint"]`, and so have their copies at every level. In graphs that run, `recomputing` makes of them
modules that are called under `torch.utils.checkpoint`:

1. nodes of one number that read each other are one part; copies at other widths, which do not, are parts of their own;
2. a part that reads what was made of it is run in several pieces, one after the other;
3. a part that reads a buffer which a forward pass writes to (`modes.BufferUpdate`) is not run again: the second run
   would read another value. Running statistics of norms are no such buffers, for training does not read them: they are
   put back after the second run, so that a batch counts once.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from anytimeify._torch import copy_node
from anytimeify.graph.traversal import ancestors, reachable
from anytimeify.ir import names
from anytimeify.ir.node_meta import checkpoint_of
from anytimeify.operators.modes import BufferUpdate
from anytimeify.operators.modules import BatchNormCall

__all__ = ["Recomputed", "part_numbers", "recomputing", "share"]

_STATE = slice(3, 7)  # the arguments of a `BatchNormCall` that it writes to


class Recomputed(nn.Module):
    """Runs a part of a graph, and with gradients once more in the backward pass.

    `written`: positions of arguments that the part writes to. As in `torch.utils.checkpoint`, random numbers are those
    of the first run; other than there, buffers are as the first run left them. An exporter is shown one run."""

    def __init__(self, part: fx.GraphModule, written: Sequence[int] = ()) -> None:
        super().__init__()
        self.part, self.written = part, tuple(written)

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self.part(*args)
        if torch.compiler.is_compiling():  # what is written in a compiled part is written once
            return checkpoint(self.part, *args, use_reentrant=False)
        # What is written is no input that is saved: torch would refuse a saved tensor that has changed.
        held = {place: args[place] for place in self.written}
        given = [value for place, value in enumerate(args) if place not in held]
        state = _PutBack([*self._buffers_of_part(), *held.values()])

        def run(*given: Any) -> Any:
            values = iter(given)
            return self.part(*(held[place] if place in held else next(values) for place in range(len(args))))

        return checkpoint(run, *given, use_reentrant=False, context_fn=lambda: (_PutBack(()), state))

    def _buffers_of_part(self) -> Iterator[Tensor]:
        for node in self.part.graph.find_nodes(op="call_module"):
            yield from self.part.get_submodule(str(node.target)).buffers()


class _PutBack:
    """What is written to these tensors inside is undone at the end; may be entered again."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.before: list[Tensor] = []

    def __enter__(self) -> None:
        self.before = [tensor.detach().clone() for tensor in self.tensors]

    def __exit__(self, *error: object) -> None:
        for tensor, before in zip(self.tensors, self.before, strict=True):
            tensor.data.copy_(before)  # does not count as a change of what was saved for the backward pass
        self.before = []


def share(root: nn.Module, module: Any) -> Any:
    """The module with the parameters, buffers and children of `root`: the same dictionaries."""
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        module.__dict__[name] = root.__dict__[name]
    return module


def part_numbers(graph: fx.Graph) -> tuple[int, ...]:
    """The parts that the backbone recomputes."""
    found = {number for node in graph.nodes if (number := checkpoint_of(node)) is not None}
    return tuple(sorted(found))


def recomputing(graph: fx.Graph, root: nn.Module) -> fx.GraphModule:
    """A module that runs a graph over the modules of `root`, which is changed, and recomputes what the backbone
    recomputes.

    It shares the dictionaries of `root`. The parts that it calls are attributes but no children of it: state dicts and
    walks over modules do not see them."""
    bare = share(root, nn.Module())
    parts = _replace_parts(graph, bare)
    bare.__dict__.update(parts)
    module: fx.GraphModule = share(root, fx.GraphModule(bare, graph))
    module.__dict__.update(parts)
    return module


def _replace_parts(graph: fx.Graph, root: nn.Module) -> dict[str, Recomputed]:
    """Puts calls in the place of parts; gives what they call, by name."""
    found: dict[str, Recomputed] = {}
    updates = [node for node in graph.nodes if isinstance(_called(node, root), BufferUpdate)]
    for part in [part for part in _connected(graph) if not _reads_state(part, updates)]:
        for piece in _pieces(graph, part):
            if len(piece) > 1:
                name = f"recomputed_{len(found)}"
                while hasattr(root, name):
                    name += "_"
                found[name] = _contract(graph, piece, root, name)
    return found


def _connected(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """The nodes of every part, in the order of the graph."""
    number = {node: checkpoint_of(node) for node in graph.nodes if checkpoint_of(node) is not None}
    seen: set[fx.Node] = set()
    for first in number:
        if first not in seen:
            part = _around(first, number)
            seen |= part
            yield [node for node in number if node in part]


def _around(first: fx.Node, number: Mapping[fx.Node, int | None]) -> set[fx.Node]:
    """What is connected with a node through nodes of the same number."""
    return set(
        reachable(
            [first],
            lambda node: (*node.all_input_nodes, *node.users),
            stop=lambda node: number.get(node) != number[first],
        )
    )


def _reads_state(part: Sequence[fx.Node], updates: Sequence[fx.Node]) -> bool:
    """Whether a part makes one of the updates, or reads a buffer of theirs: as it is, a part of it, or as a layer's."""
    held = {_tensor(node.args[0]) for node in updates}
    read = {_tensor(one) for node in part for one in node.all_input_nodes}
    layers = {str(node.target) for node in part if node.op == "call_module"}
    return (
        bool(held & read - {None})
        or any(node in updates for node in part)
        or any(name is not None and names.layer(name) in layers for name in held)
    )


def _tensor(node: Any) -> str | None:
    """The name of the tensor that a value may be a view of."""
    while node.op == "call_function" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "get_attr" else None


def _called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _pieces(graph: fx.Graph, part: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The part in pieces, none of which reads what was made of it outside."""
    inside, depth = set(part), dict[fx.Node, int]()
    for node in graph.nodes:
        depths = [
            depth[one] + (node in inside and one not in inside and depth[one] >= 0) for one in node.all_input_nodes
        ]
        depth[node] = max([0 if node in inside else -1, *depths])
    pieces: dict[int, list[fx.Node]] = {}
    for node in part:
        pieces.setdefault(depth[node], []).append(node)
    return [pieces[place] for place in sorted(pieces)]


def _contract(graph: fx.Graph, piece: Sequence[fx.Node], root: nn.Module, name: str) -> Recomputed:
    """Moves a piece into a module that a node in its place calls."""
    inside = set(piece)
    reads = list(dict.fromkeys(one for node in piece for one in node.all_input_nodes if one not in inside))
    gives = [node for node in piece if any(user not in inside for user in node.users)]
    inner = fx.Graph()
    copies = {node: inner.placeholder(node.name) for node in reads}
    for node in piece:
        copies[node] = copy_node(inner, node, copies.__getitem__)
    inner.output(tuple(copies[node] for node in gives))
    _move_after(graph, piece)
    with graph.inserting_after(piece[-1]):
        call = graph.create_node("call_module", name, tuple(reads))  # may belong to a module without it yet
    call.meta = {key: value for key, value in piece[-1].meta.items() if key == "origin"}
    for place, node in reversed(list(enumerate(gives))):
        with graph.inserting_after(call):
            value = graph.call_function(operator.getitem, (call, place))
        value.meta = {key: found for key, found in node.meta.items() if key != "checkpoint"}
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user not in inside)
    for node in reversed(piece):
        graph.erase_node(node)
    module = share(root, fx.GraphModule(share(root, nn.Module()), inner))
    return Recomputed(module, [place for place, node in enumerate(reads) if copies[node] in _written(inner, root)])


def _move_after(graph: fx.Graph, piece: Sequence[fx.Node]) -> None:
    """Moves what depends on a piece, and stands between its nodes, after it."""
    inside, after, last = set(piece), set[fx.Node](), piece[-1]
    begun = False
    for node in list(graph.nodes):
        begun = begun or node is piece[0]
        if node is piece[-1]:
            return
        if begun and node not in inside and any(one in inside or one in after for one in node.all_input_nodes):
            after.add(node)
            last.append(node)
            last = node


def _written(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The inputs of a piece that hold running statistics which are given at a call."""
    calls = (node for node in graph.nodes if isinstance(_called(node, root), BatchNormCall))
    return ancestors(state for node in calls for state in node.args[_STATE] if isinstance(state, fx.Node))
